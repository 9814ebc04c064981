//! Weights: every tensor of the parity checkpoints accounted for, other writers' layouts, formats, saving, abuse.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ernie_files::safetensors::Writer;
use ernie_files::{Checkpoint, Dtype, TensorInfo};
use ernie_model::config::Role;
use ernie_model::weights::{SaveAs, SaveTensor, Weights, save, save_into, save_sharded};
use ernie_model::{Error, LoadReport, ModelConfig, ModelSource, WeightsAs};
use ernie_nn::{Form, Packed};

fn parity(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity").join(folder)
}

/// A checkpoint in memory, to be bent and written.
#[derive(Clone)]
struct Draft {
    config: String,
    tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
}

impl Draft {
    fn of(folder: &str) -> Self {
        let path = parity(folder);
        let file = Checkpoint::open(&path).unwrap();
        let tensors = file
            .tensors()
            .map(|t| (t.name.clone(), (t.dtype, t.shape.clone(), file.bytes(&t.name).unwrap().to_vec())))
            .collect();
        Draft { config: std::fs::read_to_string(path.join("config.json")).unwrap(), tensors }
    }

    fn put(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.tensors.insert(name.into(), (Dtype::F32, shape.to_vec(), bytes));
    }

    fn values(&self, name: &str) -> Vec<f32> {
        self.tensors[name].2.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    fn write(&self) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), &self.config).unwrap();
        let infos: Vec<TensorInfo> =
            self.tensors.iter().map(|(name, (dtype, shape, _))| TensorInfo::new(name, *dtype, shape.clone())).collect();
        let path = folder.path().join("model.safetensors");
        let mut writer = Writer::create(&path, &infos, &BTreeMap::new()).unwrap();
        for (_, _, bytes) in self.tensors.values() {
            writer.write(bytes).unwrap();
        }
        writer.finish().unwrap();
        folder
    }
}

/// Every tensor, widened, by its published name.
type Widened = BTreeMap<String, Vec<f32>>;

/// Everything the config calls for, as f32, and the account.
fn load_all(path: &Path) -> Result<(ModelConfig, Widened, LoadReport), Error> {
    let mut weights = Weights::open(&ModelSource::Folder(path.to_owned()), WeightsAs::Native)?;
    let config = weights.config().clone();
    let mut values = BTreeMap::new();
    for spec in config.tensors() {
        values.insert(spec.name.clone(), weights.take_f32(&spec.name, &spec.shape)?);
    }
    Ok((config, values, weights.finish()?))
}

fn load_error(draft: &Draft) -> String {
    let folder = draft.write();
    let error = load_all(folder.path()).expect_err("must be refused");
    let message = error.to_string();
    assert!(error.is_input() && !message.contains('\n'), "{message}");
    message
}

#[test]
fn every_tensor_of_the_parity_checkpoints_is_used_or_named() {
    for folder in ["dense", "moe", "moe_untied"] {
        let stored = Checkpoint::open(&parity(folder)).unwrap().tensors().count();
        let (config, values, report) = load_all(&parity(folder)).unwrap();
        assert_eq!((report.used, report.skipped.len()), (stored, 0), "{folder}");
        assert_eq!(report.weight_bytes, 4 * config.parameters().total, "{folder}");
        let draft = Draft::of(folder);
        for (name, values) in &values {
            assert_eq!(*values, draft.values(name), "{name}");
        }
    }
    let draft = Draft::of("vl");
    let (config, values, report) = load_all(&parity("vl")).unwrap();
    let vision = report.skipped.iter().filter(|name| name.starts_with("vision_model.")).count();
    assert!(vision > 20 && report.skipped.iter().any(|name| name.ends_with("mlp.gate.weight_1")));
    // The correction bias is both: its first row is used, its second named.
    let both = report.skipped.iter().filter(|name| name.contains("second row")).count();
    assert_eq!(both, 2);
    assert_eq!(report.used + report.skipped.len() - both, draft.tensors.len());
    let sum: usize = draft.tensors.values().map(|(_, shape, _)| shape.iter().product::<usize>()).sum();
    assert_eq!(sum as u64, config.parameters().total, "tower, adapter and vision experts count");
    // Gates are stored transposed; the bias keeps its text row.
    let name = "model.layers.1.mlp.gate.weight";
    let stored = draft.values(name);
    assert_eq!(values[name][64 + 5], stored[5 * 6 + 1]);
    let name = "model.layers.1.mlp.moe_statics.e_score_correction_bias";
    assert_eq!(values[name][..], draft.values(name)[..6]);
}

#[test]
fn both_vl_config_forms_load_the_same_weights() {
    let mut draft = Draft::of("vl");
    draft.config = std::fs::read_to_string(parity("vl/config.hub.json")).unwrap();
    let folder = draft.write();
    assert_eq!(load_all(folder.path()).unwrap().1, load_all(&parity("vl")).unwrap().1);
}

#[test]
fn fused_experts_are_taken_apart() {
    let plain = load_all(&parity("moe")).unwrap().1;
    let mut draft = Draft::of("moe");
    for layer in [1, 2] {
        let at = format!("model.layers.{layer}.mlp");
        let (mut gate_up, mut down) = (Vec::new(), Vec::new());
        for expert in 0..8 {
            for part in ["gate_proj", "up_proj"] {
                let name = format!("{at}.experts.{expert}.{part}.weight");
                gate_up.extend(draft.values(&name));
                draft.tensors.remove(&name);
            }
            let name = format!("{at}.experts.{expert}.down_proj.weight");
            down.extend(draft.values(&name));
            draft.tensors.remove(&name);
        }
        draft.put(&format!("{at}.experts.gate_up_proj"), &[8, 32, 32], &gate_up);
        draft.put(&format!("{at}.experts.down_proj"), &[8, 32, 16], &down);
        let old = format!("{at}.moe_statics.e_score_correction_bias");
        let bias = draft.tensors.remove(&old).unwrap();
        draft.tensors.insert(format!("{at}.gate.moe_statics.e_score_correction_bias"), bias);
    }
    let folder = draft.write();
    let (_, values, report) = load_all(folder.path()).unwrap();
    assert_eq!(values, plain);
    assert_eq!(report.used, draft.tensors.len());
}

#[test]
fn formats_are_what_was_asked_for() {
    let shape = [80, 32];
    let name = "model.layers.0.mlp.gate_proj.weight";
    let exact = Draft::of("dense").values(name);
    for (to, form, bytes) in [
        (WeightsAs::Native, Form::F32, 4 * 80 * 32),
        (WeightsAs::F32, Form::F32, 4 * 80 * 32),
        (WeightsAs::Bf16, Form::BF16, 2 * 80 * 32),
        (WeightsAs::Int8, Form::INT8, 80 * 32 + 4 * 80),
        (WeightsAs::Int4, Form::int4(), 80 * 16 + 4 * 80),
    ] {
        let mut weights = Weights::open(&ModelSource::Folder(parity("dense")), to).unwrap();
        let stored = weights.take(name, &shape).unwrap();
        assert_eq!((stored.form(), stored.memory_bytes()), (form, bytes));
        let packed = stored.pack().unwrap();
        assert_eq!(packed.form(), form);
        for (back, exact) in rows(&packed).chunks(32).zip(exact.chunks(32)) {
            // Half a step of what the form can tell apart in this row.
            let spread = exact.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            let step = match to {
                WeightsAs::Native | WeightsAs::F32 => 0.0,
                WeightsAs::Bf16 | WeightsAs::Int8 => spread / 127.0,
                WeightsAs::Int4 => 2.0 * spread / 15.0,
            };
            for (back, exact) in back.iter().zip(exact) {
                assert!((back - exact).abs() <= step * 0.52, "{to:?}: {back} {exact}");
            }
        }
        assert_eq!(weights.take_f32("model.norm.weight", &[32]).unwrap().len(), 32);
    }
    assert_eq!("int4".parse::<WeightsAs>().unwrap(), WeightsAs::Int4);
    assert!("int5".parse::<WeightsAs>().is_err());
}

#[test]
fn float_types_of_every_width_are_read() {
    let mut draft = Draft::of("dense");
    let wide = draft.values("model.norm.weight");
    let name = "model.layers.0.input_layernorm.weight";
    let values = draft.values(name);
    let bytes = values.iter().flat_map(|&x| f64::from(x).to_le_bytes()).collect();
    draft.tensors.insert(name.into(), (Dtype::F64, vec![32], bytes));
    let half: Vec<f32> = wide.iter().map(|&x| half::f16::from_f32(x).to_f32()).collect();
    let bytes = wide.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect();
    draft.tensors.insert("model.norm.weight".into(), (Dtype::F16, vec![32], bytes));
    let folder = draft.write();
    let (_, loaded, _) = load_all(folder.path()).unwrap();
    assert_eq!(loaded[name], values);
    assert_eq!(loaded["model.norm.weight"], half);
}

fn saved(values: &BTreeMap<String, Vec<f32>>, config: &ModelConfig) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    config.tensors().into_iter().map(|s| (s.name.clone(), s.shape, values[&s.name].clone())).collect()
}

#[test]
fn a_saved_model_is_the_model() {
    for folder in ["dense", "moe", "moe_untied"] {
        let (config, values, _) = load_all(&parity(folder)).unwrap();
        let all = saved(&values, &config);
        let tensors: Vec<SaveTensor<'_>> =
            all.iter().map(|(name, shape, values)| SaveTensor::of(name, shape.clone(), values)).collect();
        let parent = tempfile::tempdir().unwrap();
        let out = parent.path().join("out");
        save(&out, &config, &tensors, &[], SaveAs::F32).unwrap();
        let (back, again, report) = load_all(&out).unwrap();
        assert_eq!((&back, &again), (&config, &values), "{folder}");
        assert_eq!(report.used, all.len());
        assert!(out.join("generation_config.json").is_file());

        // In shards, with an index; a layer straddles them.
        let out = tempfile::tempdir().unwrap();
        save_sharded(out.path(), &config, &tensors, &[], SaveAs::F32, 20_000).unwrap();
        assert!(out.path().join("model.safetensors.index.json").is_file());
        assert_eq!(load_all(out.path()).unwrap().1, values, "{folder}");

        // Rounded: twice is once.
        let out = tempfile::tempdir().unwrap();
        save_into(out.path(), &config, &tensors, &[], SaveAs::Bf16).unwrap();
        let file = Checkpoint::open(out.path()).unwrap();
        for spec in config.tensors() {
            let kept = matches!(spec.role, Role::Router | Role::CorrectionBias);
            assert_eq!(file.info(&spec.name).unwrap().dtype == Dtype::F32, kept, "{}", spec.name);
        }
        let (_, rounded, _) = load_all(out.path()).unwrap();
        for (name, value) in rounded.iter().filter(|(name, _)| Role::of(name) == Role::Linear) {
            let expect: Vec<f32> = values[name].iter().map(|&x| half::bf16::from_f32(x).to_f32()).collect();
            assert_eq!(*value, expect, "{name}");
        }
    }
}

#[test]
fn eight_bits_on_disk_are_eight_bits_in_memory() {
    let (config, values, _) = load_all(&parity("moe_untied")).unwrap();
    let all = saved(&values, &config);
    let tensors: Vec<SaveTensor<'_>> =
        all.iter().map(|(name, shape, values)| SaveTensor::of(name, shape.clone(), values)).collect();
    let out = tempfile::tempdir().unwrap();
    save_into(out.path(), &config, &tensors, &[], SaveAs::Int8).unwrap();
    let mut disk = Weights::open(&ModelSource::Folder(out.path().into()), WeightsAs::Native).unwrap();
    let mut memory = Weights::open(&ModelSource::Folder(parity("moe_untied")), WeightsAs::Int8).unwrap();
    for spec in config.tensors() {
        if spec.role.is_matrix() {
            let (one, other) = (disk.take(&spec.name, &spec.shape), memory.take(&spec.name, &spec.shape));
            let (one, other) = (one.unwrap().pack().unwrap(), other.unwrap().pack().unwrap());
            assert_eq!((one.form(), other.form()), (Form::INT8, Form::INT8), "{}", spec.name);
            assert!(rows(&one) == rows(&other), "{}", spec.name);
        } else {
            let one = disk.take_f32(&spec.name, &spec.shape).unwrap();
            assert_eq!(one, memory.take_f32(&spec.name, &spec.shape).unwrap());
        }
    }
    let report = disk.finish().unwrap();
    assert_eq!(report.used, Checkpoint::open(out.path()).unwrap().tensors().count());

    // A scale lost, and 8-bit tensors without their description.
    let text = std::fs::read_to_string(out.path().join("config.json")).unwrap();
    let mut draft = Draft { config: text.clone(), tensors: BTreeMap::new() };
    let file = Checkpoint::open(out.path()).unwrap();
    for t in file.tensors() {
        let bytes = file.bytes(&t.name).unwrap().to_vec();
        draft.tensors.insert(t.name.clone(), (t.dtype, t.shape.clone(), bytes));
    }
    let mut lost = draft.clone();
    lost.tensors.remove("lm_head.weight_scale");
    assert!(load_error(&lost).contains("lm_head.weight_scale"));
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json.as_object_mut().unwrap().remove("quantization_config");
    draft.config = json.to_string();
    assert!(load_error(&draft).contains("quantization_config"));
}

/// A tied model's file may bring the scales that a head would have, for programs that look for them before they tie.
#[test]
fn a_tied_head_may_bring_its_scales() {
    let (config, values, _) = load_all(&parity("dense")).unwrap();
    let all = saved(&values, &config);
    let tensors: Vec<SaveTensor<'_>> =
        all.iter().map(|(name, shape, values)| SaveTensor::of(name, shape.clone(), values)).collect();
    let out = tempfile::tempdir().unwrap();
    save_into(out.path(), &config, &tensors, &[], SaveAs::Int8).unwrap();
    let file = Checkpoint::open(out.path()).unwrap();
    let mut draft =
        Draft { config: std::fs::read_to_string(out.path().join("config.json")).unwrap(), tensors: BTreeMap::new() };
    for t in file.tensors() {
        draft.tensors.insert(t.name.clone(), (t.dtype, t.shape.clone(), file.bytes(&t.name).unwrap().to_vec()));
    }
    let name = "lm_head.weight_scale";
    let scales = draft.tensors["model.embed_tokens.weight_scale"].clone();
    draft.tensors.insert(name.into(), scales);
    let (_, _, report) = load_all(draft.write().path()).unwrap();
    assert!(report.skipped.iter().any(|line| line.starts_with(name)), "{:?}", report.skipped);
    draft.tensors.get_mut(name).unwrap().2[0] ^= 1;
    assert!(load_error(&draft).contains(name));
}

#[test]
fn multi_token_prediction_is_kept_and_saved_again() {
    let mut draft = Draft::of("moe");
    draft.put("model.mtp_emb_norm.0.weight", &[32], &[1.5; 32]);
    draft.put("model.mtp_linear_proj.0.weight", &[32, 64], &[0.25; 2048]);
    let folder = draft.write();
    let (config, values, report) = load_all(folder.path()).unwrap();
    assert_eq!(report.skipped.len(), 2);
    assert!(report.notes.iter().any(|note| note.contains("multi-token")), "{:?}", report.notes);
    let all = saved(&values, &config);
    let tensors: Vec<SaveTensor<'_>> =
        all.iter().map(|(name, shape, values)| SaveTensor::of(name, shape.clone(), values)).collect();
    let out = tempfile::tempdir().unwrap();
    save_into(out.path(), &config, &tensors, &report.kept, SaveAs::F32).unwrap();
    let (_, _, again) = load_all(out.path()).unwrap();
    assert_eq!(again.skipped, report.skipped);
    assert_eq!(again.kept[0].bytes[..], report.kept[0].bytes[..]);
}

#[test]
fn a_head_for_labels_is_drawn_kept_or_set_aside() {
    let labels = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    let open = |path: &Path, names: &[&str], seed: u64| {
        let weights = Weights::open(&ModelSource::Folder(path.into()), WeightsAs::F32).unwrap();
        ernie_model::build_trainable(weights.with_labels(&labels(names), seed).unwrap(), ernie_nn::Width::F32).unwrap()
    };
    let score = |loaded: &ernie_model::Loaded| loaded.decoder.score().unwrap().to_vec().unwrap();
    let base = parity("moe_untied");
    let (one, same, other) = (open(&base, &["a", "b"], 1), open(&base, &["a", "b"], 1), open(&base, &["a", "b"], 2));
    assert_eq!(score(&one), score(&same));
    assert_ne!(score(&one), score(&other));
    assert!(score(&one).iter().any(|&weight| weight != 0.0) && one.report.skipped.is_empty());

    let out = tempfile::tempdir().unwrap();
    one.decoder.save_into(out.path(), &[], SaveAs::F32).unwrap();
    let kept = open(out.path(), &["a", "b"], 9);
    assert!(score(&kept) == score(&one) && kept.report.used == one.report.used + 1);
    let anew = open(out.path(), &["b", "a"], 9);
    assert!(
        score(&anew) != score(&one) && anew.report.skipped[0].starts_with("score.weight (a head for other labels)")
    );
    assert!(anew.report.notes.iter().any(|note| note.contains("other labels")), "{:?}", anew.report.notes);
    let weights = Weights::open(&ModelSource::Folder(base), WeightsAs::F32).unwrap();
    assert!(weights.with_labels(&labels(&["a"]), 1).err().unwrap().is_input());

    // What a config does not announce is not passed over.
    let config = out.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("ForSequenceClassification", "ForCausalLM")).unwrap();
    assert!(load_all(out.path()).unwrap_err().to_string().contains("score.weight"));
}

#[test]
fn saving_refuses_what_is_not_the_model() {
    let config = ModelConfig::from_json(&Draft::of("dense").config).unwrap();
    let out = tempfile::tempdir().unwrap();
    let one = [SaveTensor::of("model.norm.weight", vec![32], &[1.0; 32])];
    assert!(save_into(out.path(), &config, &one, &[], SaveAs::F32).is_err());
    let vl = ModelConfig::from_json(&Draft::of("vl").config).unwrap();
    assert!(matches!(save_into(out.path(), &vl, &[], &[], SaveAs::F32), Err(Error::NotBuilt { .. })));
}

#[test]
fn random_weights_depend_on_the_seed_alone() {
    let nano = ModelConfig::preset("nano").unwrap();
    let take = |seed, to, name: &str, shape: &[usize]| {
        Weights::open(&ModelSource::Preset("nano".into(), seed), to).unwrap().take(name, shape).unwrap()
    };
    let name = "model.layers.1.mlp.experts.3.up_proj.weight";
    let one = take(1, WeightsAs::Native, name, &[128, 256]);
    assert_eq!(one.form(), Form::F32);
    let values = one.into_f32().unwrap();
    assert!(values == take(1, WeightsAs::F32, name, &[128, 256]).into_f32().unwrap());
    assert!(values == rows(&take(1, WeightsAs::F32, name, &[128, 256]).pack().unwrap()));
    assert!(values != take(2, WeightsAs::F32, name, &[128, 256]).into_f32().unwrap());
    let std = (values.iter().map(|x| f64::from(x * x)).sum::<f64>() / values.len() as f64).sqrt();
    assert!((std / nano.initializer_range - 1.0).abs() < 0.02, "{std}");
    let mut all = Weights::random(nano.clone(), 1, WeightsAs::F32).unwrap();
    for spec in nano.tensors() {
        all.take_f32(&spec.name, &spec.shape).unwrap();
    }
    let report = all.finish().unwrap();
    assert_eq!(report.weight_bytes, 4 * nano.parameters().total);
    assert_eq!(report.used, nano.tensors().len());
    let base = take_base(WeightsAs::Native);
    assert_eq!(base, Form::BF16);
}

/// All rows of a packed matrix.
fn rows(packed: &Packed) -> Vec<f32> {
    let mut all = vec![0.0; packed.out_features() * packed.in_features()];
    for (index, row) in all.chunks_exact_mut(packed.in_features()).enumerate() {
        packed.row(index, row);
    }
    all
}

fn take_base(to: WeightsAs) -> Form {
    let mut weights = Weights::open(&ModelSource::Preset("base".into(), 1), to).unwrap();
    weights.take("model.layers.0.self_attn.k_proj.weight", &[256, 1024]).unwrap().form()
}

#[test]
fn weights_that_do_not_fit_are_refused_by_name() {
    let up = "model.layers.2.mlp.up_proj.weight";
    type Change = fn(&mut Draft);
    let table: [(&str, Change, &str); 14] = [
        ("dense", |d| drop(d.tensors.remove("model.layers.2.mlp.up_proj.weight")), "missing tensors: model.layers.2"),
        ("dense", |d| drop(d.tensors.remove("model.embed_tokens.weight")), "model.embed_tokens.weight"),
        ("dense", |d| d.put("model.layers.2.extra.weight", &[2], &[0.0, 1.0]), "no use for: model.layers.2.extra"),
        ("dense", |d| d.put("model.layers.3.input_layernorm.weight", &[32], &[1.0; 32]), "model.layers.3"),
        ("dense", |d| d.put("model.layers.0.self_attn.q_proj.bias", &[64], &[1.0; 64]), "q_proj.bias"),
        ("dense", |d| d.put("lm_head.weight", &[256, 32], &[0.5; 8192]), "lm_head.weight"),
        ("dense", |d| d.put("vision_model.ln.weight", &[2], &[0.0, 1.0]), "vision_model.ln.weight"),
        ("dense", |d| d.put("model.layers.0.self_attn.rotary_emb.inv_freq", &[8], &[1.0; 8]), "inv_freq"),
        ("moe_untied", |d| drop(d.tensors.remove("lm_head.weight")), "missing tensors: lm_head.weight"),
        ("moe", |d| drop(d.tensors.remove("model.layers.1.mlp.experts.7.down_proj.weight")), "experts.7.down_proj"),
        (
            "moe",
            |d| d.put("model.layers.1.mlp.experts.8.down_proj.weight", &[32, 16], &[0.0; 512]),
            "experts.8.down_proj",
        ),
        ("moe", |d| d.put("model.layers.1.mlp.gate.weight", &[32, 8], &[0.0; 256]), "transposed"),
        ("vl", |d| d.put("model.layers.1.mlp.experts.12.down_proj.weight", &[64, 8], &[0.0; 512]), "experts.12"),
        ("moe", |d| d.config = d.config.replace("\"moe_k\": 3", "\"moe_k\": 30"), "moe_k"),
    ];
    for (folder, change, needle) in table {
        let mut draft = Draft::of(folder);
        change(&mut draft);
        let message = load_error(&draft);
        assert!(message.contains(needle), "{needle}: {message}");
    }
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut draft = Draft::of("dense");
        let mut values = draft.values(up);
        values[77] = bad;
        draft.put(up, &[80, 32], &values);
        let message = load_error(&draft);
        assert!(message.contains(up) && message.contains("not finite"), "{message}");
    }
    for (dtype, bytes) in [(Dtype::I32, 4), (Dtype::I8, 1), (Dtype::U8, 1), (Dtype::F8E4M3, 1), (Dtype::Bool, 1)] {
        let mut draft = Draft::of("dense");
        draft.tensors.insert(up.into(), (dtype, vec![80, 32], vec![0; bytes * 80 * 32]));
        let message = load_error(&draft);
        assert!(message.contains(up) && message.contains("float"), "{message}");
    }
    let mut draft = Draft::of("dense");
    draft.put(up, &[32, 80], &[0.0; 2560]);
    assert!(load_error(&draft).contains("transposed"));
}

#[test]
fn odd_but_sound_weights_are_taken() {
    // All zero, denormal, and a head equal to the embedding it is tied to.
    let mut draft = Draft::of("dense");
    draft.put("model.layers.0.mlp.up_proj.weight", &[80, 32], &[0.0; 2560]);
    draft.put("model.layers.1.mlp.up_proj.weight", &[80, 32], &[1e-42; 2560]);
    let embedding = draft.values("model.embed_tokens.weight");
    draft.put("lm_head.weight", &[256, 32], &embedding);
    let folder = draft.write();
    let (_, values, report) = load_all(folder.path()).unwrap();
    assert_eq!(values["model.layers.1.mlp.up_proj.weight"][3], 1e-42);
    assert_eq!(report.skipped.len(), 1);
    assert!(report.skipped[0].starts_with("lm_head.weight"));
    for to in [WeightsAs::Int8, WeightsAs::Bf16] {
        let mut weights = Weights::open(&ModelSource::Folder(folder.path().into()), to).unwrap();
        weights.take("model.layers.0.mlp.up_proj.weight", &[80, 32]).unwrap().pack().unwrap();
    }
}

#[test]
fn places_without_a_model_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &Path| Weights::open(&ModelSource::Folder(path.into()), WeightsAs::Native).err().unwrap();
    assert!(open(folder.path()).to_string().contains("config.json"));
    std::fs::write(folder.path().join("config.json"), Draft::of("dense").config).unwrap();
    assert!(open(folder.path()).is_input());
    std::fs::write(folder.path().join("pytorch_model.bin"), b"PK").unwrap();
    let error = open(folder.path());
    assert!(error.is_input() && error.to_string().contains("safetensors"), "{error}");
    let huge = folder.path().join("config.json");
    std::fs::File::create(&huge).unwrap().set_len(1 << 34).unwrap();
    assert!(open(folder.path()).is_input());
}

#[test]
fn a_config_that_calls_for_too_much_is_refused_in_bounded_memory() {
    // 4,096 layers of 4,096 experts would be fifty million names; the file has 20 tensors.
    let mut draft = Draft::of("moe");
    let mut json: serde_json::Value = serde_json::from_str(&draft.config).unwrap();
    json["num_hidden_layers"] = 4096.into();
    json["moe_num_experts"] = 4096.into();
    json["moe_layer_end_index"] = (-1).into();
    draft.config = json.to_string();
    draft.tensors.retain(|name, _| !name.contains("layers.1.mlp.gate"));
    let message = load_error(&draft);
    assert!(message.contains("more") || message.contains("expected shape"), "{message}");
}
