//! Paged = contiguous, bit for bit, however a sequence is cut and wherever its pages lie; and bad block tables are refused.

use std::path::Path;

use ernie_model::{CacheFormat, ContiguousCache, Decoder, ModelSource, PAGE, PagedCache, Tokens, WeightsAs, load};

fn decoder(name: &str) -> Decoder {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity").join(name);
    load(&ModelSource::Folder(folder), WeightsAs::F32).expect("a tiny model").decoder
}

fn ids(length: usize, salt: usize) -> Vec<u32> {
    (0..length).map(|i| ((i * 31 + salt * 17) % 256) as u32).collect()
}

fn whole(model: &Decoder, ids: &[u32]) -> Vec<f32> {
    let mut cache = ContiguousCache::new(model.config());
    let mut tokens = Tokens::default();
    tokens.push(cache.add_slot(), 0, ids);
    let rows: Vec<usize> = (0..ids.len()).collect();
    model.forward_logits(&tokens, Some(&mut cache), &rows).expect("runs")
}

/// Logits of the rows of a pass whose spans are `(table, past, ids)`.
fn pass(model: &Decoder, cache: &mut PagedCache, parts: &[(&[u32], usize, &[u32])]) -> Vec<f32> {
    let mut tokens = Tokens::default();
    for (slot, (_, past, ids)) in parts.iter().enumerate() {
        tokens.push(slot, *past, ids);
    }
    cache.begin(parts.iter().map(|part| part.0), &tokens.spans).expect("good tables");
    let rows: Vec<usize> = (0..tokens.len()).collect();
    model.forward_logits(&tokens, Some(cache), &rows).expect("runs")
}

#[test]
fn paged_is_contiguous_however_it_is_cut() {
    for name in ["dense", "moe"] {
        let model = decoder(name);
        let (first, second) = (ids(2 * PAGE + 9, 1), ids(PAGE + 3, 2));
        let expect = [whole(&model, &first), whole(&model, &second)];
        // Scattered pages, taken in any order.
        let tables: [&[u32]; 2] = [&[1, 4, 2], &[0, 3]];
        for cut in [1, 5, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE] {
            let mut cache = PagedCache::new(model.config(), CacheFormat::F32).expect("heads divide");
            let mut logits = [Vec::new(), Vec::new()];
            for past in (0..first.len()).step_by(cut) {
                let parts: Vec<(usize, &[u32])> = [&first, &second]
                    .iter()
                    .enumerate()
                    .filter(|(_, ids)| past < ids.len())
                    .map(|(at, ids)| (at, &ids[past..ids.len().min(past + cut)]))
                    .collect();
                let spans: Vec<(&[u32], usize, &[u32])> =
                    parts.iter().map(|&(at, ids)| (tables[at], past, ids)).collect();
                let mut rows = pass(&model, &mut cache, &spans).into_iter();
                for (at, ids) in parts {
                    logits[at].extend(rows.by_ref().take(ids.len() * model.config().vocab_size));
                }
            }
            assert!(logits == expect, "{name}: cut every {cut}");
            assert_eq!(cache.bytes(), 5 * cache.block_bytes());
        }
    }
}

#[test]
fn a_shared_page_serves_two_and_a_tail_can_be_written_anew() {
    let model = decoder("dense");
    let stem = ids(PAGE, 1);
    let longer = |salt| [stem.clone(), ids(6, salt)].concat();
    let vocab = model.config().vocab_size;
    let mut cache = PagedCache::new(model.config(), CacheFormat::F32).expect("heads divide");
    pass(&model, &mut cache, &[(&[0, 1], 0, &longer(3))]);
    // Rolled back by two positions, and beside it another sequence that goes on from the same stem.
    let (again, other) = (ids(2, 8), ids(6, 5));
    let logits = pass(&model, &mut cache, &[(&[0, 1], PAGE + 4, &again), (&[0, 2], PAGE, &other)]);
    let expect = whole(&model, &[&longer(3)[..PAGE + 4], &again].concat());
    assert!(logits[..2 * vocab] == expect[(PAGE + 4) * vocab..]);
    assert!(logits[2 * vocab..] == whole(&model, &longer(5))[PAGE * vocab..]);
}

#[test]
fn bad_block_tables_are_refused() {
    let model = decoder("dense");
    let mut cache = PagedCache::new(model.config(), CacheFormat::F32).expect("heads divide");
    pass(&model, &mut cache, &[(&[0, 1], 0, &ids(PAGE + 4, 1))]);
    let mut refused = |parts: &[(&[u32], usize, usize)], words: &str| {
        let mut tokens = Tokens::default();
        for (slot, &(_, past, rows)) in parts.iter().enumerate() {
            tokens.push(slot, past, &ids(rows, 0));
        }
        let error = cache.begin(parts.iter().map(|part| part.0), &tokens.spans).unwrap_err();
        assert!(error.is_input() && error.to_string().contains(words), "{error}");
    };
    refused(&[(&[0], PAGE, 1)], "needs 2 blocks, its table has 1");
    refused(&[(&[0, 7], PAGE + 4, 1)], "reads block 7, which holds nothing");
    refused(&[(&[5, 1], PAGE + 4, 1)], "reads block 5");
    refused(&[(&[0, 1], PAGE + 4, 1), (&[0, 1], PAGE + 4, 1)], "may not write block 1");
    refused(&[(&[0, 0], PAGE, 1)], "may not write block 0");
    refused(&[(&[u32::MAX], 0, 1)], "may not write block 4294967295");
    let mut tokens = Tokens::default();
    tokens.push(3, 0, &[1]);
    assert!(cache.begin([&[4u32][..]], &tokens.spans).unwrap_err().to_string().contains("no block table"));
    // A pass that was not announced, and one of another shape than announced.
    let mut tokens = Tokens::default();
    tokens.push(1, 0, &[1]);
    assert!(model.forward_logits(&tokens, Some(&mut cache), &[0]).is_err());
}
