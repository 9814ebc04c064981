#!/usr/bin/env python3
"""Lets the CUDA wheel of torch load where there is no CUDA, for CPU use only.

The wheel's libraries name CUDA libraries, gigabytes of them, that `pip install --no-deps torch` leaves out. For each that
is named and absent this writes a stand-in of the same name into torch/lib whose every function returns "no device"; torch
then sees no GPU, and its CPU code is untouched. Needs gcc and readelf.
"""
import collections
import ctypes
import importlib.util
import os
import re
import subprocess
import sys
import tempfile

lib = os.path.join(os.path.dirname(importlib.util.find_spec("torch").origin), "lib")
libraries = [os.path.join(lib, name) for name in sorted(os.listdir(lib)) if re.search(r"\.so(\.|$)", name)]

# Which stand-in a function without a version belongs to, by how its name begins.
HOMES = [("cublasLt", "libcublasLt"), ("cublas", "libcublas"), ("cudnn", "libcudnn"), ("cusparseLt", "libcusparseLt"),
         ("cusparse", "libcusparse"), ("cusolver", "libcusolver"), ("cufft", "libcufft"), ("cuFile", "libcufile"),
         ("cupti", "libcupti"), ("nccl", "libnccl"), ("nvshmem", "libnvshmem"), ("nvrtc", "libnvrtc")]
CUDA = re.compile(r"^(_*cu[a-zA-Z]|_*nccl|nvshmem|nvrtc|nvtx|nvJit|cupti|_*nv)")
# These return text; all others a number.
TEXT = {"cudaGetErrorString", "cudaGetErrorName", "ncclGetErrorString", "cublasGetStatusString", "cudnnGetErrorString",
        "nvrtcGetErrorString", "ncclGetLastError"}


def readelf(*options):
    return subprocess.run(["readelf", "-W", *options], check=True, capture_output=True, text=True).stdout


def is_there(name):
    try:
        ctypes.CDLL(name)
        return True
    except OSError:
        return False


def symbols():
    """What the libraries need and what they define: names of libraries, functions wanted by version, functions there."""
    needed, wanted, defined = set(), {}, set()
    for library in libraries:
        needed.update(re.findall(r"NEEDED.*\[(.*?)\]", readelf("-d", library)))
        for line in readelf("--dyn-syms", library).splitlines():
            part = line.split()
            if len(part) < 8 or not part[0].rstrip(":").isdigit():
                continue
            name, _, version = part[7].partition("@")
            if part[6] != "UND":
                defined.add(name)
            elif part[4] != "WEAK":
                wanted[name] = version.lstrip("@")
    return needed, {n: v for n, v in wanted.items() if n not in defined and CUDA.match(n)}


def home(name, version, missing):
    if version in missing:
        return version
    stem = next((stem for prefix, stem in HOMES if name.startswith(prefix)), "libcudart")
    for stem in (stem, "libcudart"):
        for library in missing:
            if library.startswith((stem + ".", stem + "_")):
                return library
    return missing[0] if missing else None


def write(library, functions, folder):
    """A library of that name with these functions, by version."""
    source, versions = os.path.join(folder, "s.c"), os.path.join(folder, "v.map")
    with open(source, "w") as file:
        file.write('static const char text[] = "no CUDA here";\n')
        for name in (name for names in functions.values() for name in names):
            file.write(f"const char *{name}(void) {{ return text; }}\n" if name in TEXT
                       else f"long {name}(void) {{ return 100; }}\n")
    command = ["gcc", "-shared", "-fPIC", "-O1", "-w", "-fno-builtin", f"-Wl,-soname,{library}", "-o",
               os.path.join(lib, library), source]
    named = {version: names for version, names in functions.items() if version}
    if named:
        with open(versions, "w") as file:
            for version, names in named.items():
                file.write(f"{version} {{ global: {'; '.join(names)}; }};\n")
        command.append(f"-Wl,--version-script={versions}")
    subprocess.run(command, check=True)


needed, wanted = symbols()
have = {os.path.basename(library) for library in libraries}
missing = sorted(name for name in needed if name not in have and not is_there(name))
functions = collections.defaultdict(lambda: collections.defaultdict(list))
for name, version in wanted.items():
    if library := home(name, version, missing):
        functions[library][version].append(name)
with tempfile.TemporaryDirectory() as folder:
    for library in missing:
        write(library, functions[library], folder)
check = "import torch; print('torch', torch.__version__, 'on the CPU:', torch.backends.cpu.get_cpu_capability())"
sys.exit(subprocess.run([sys.executable, "-c", check]).returncode)
