"""Build the kernels: one library over LibTorch's stable ABI, and the tests' simulator.

`setup.py` builds the library when revgrad is installed. By hand, in a checkout:

    python csrc/build_kernels.py library          build/kernels -> revgrad/_C.so
    python csrc/build_kernels.py simt             build/simt: the CUDA kernels on the CPU
    python csrc/build_kernels.py cuda             only compile the CUDA sources, warnings as errors
    python csrc/build_kernels.py ... --sanitize   the same with AddressSanitizer and UBSan

Environment: CXX; REVGRAD_CUDA=0 or 1 leaves the CUDA kernels out or insists on them (else they
come in where nvcc is found); REVGRAD_ARCHS names GPU architectures, such as 80,90.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

CSRC = Path(__file__).resolve().parent
ROOT = CSRC.parent
LIBRARY = ROOT / "revgrad" / "_C.so"
SIMULATOR = "revgrad_simt"

# The oldest torch whose stable ABI has all that csrc/stable.h uses.
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
COMMON = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-fopenmp-simd", *WARNINGS]
FAST = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
SANITIZE = ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"]
# Instruction sets that *_loops.cpp are compiled for; the processor's is picked at run time.
VARIANTS = {
    "v3": ["-march=x86-64-v3"],
    "v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
}
ARCHS = "80,90"


class Obstacle(Exception):
    """Why the kernels cannot be built here, in words for a user."""


@dataclass
class Ninja:
    """Collects the build's statements and runs them.

    Args:
        folder: Where objects and the build file go.
        name: Of the build file; several may share their objects.
    """

    folder: Path
    name: str = "build.ninja"
    lines: list[str] = field(default_factory=list)

    def rule(self, name: str, command: list[str], deps: bool = True) -> None:
        self.lines += [f"rule {name}", f"  command = {' '.join(command)}"]
        if deps:
            self.lines += ["  depfile = $out.d", "  deps = gcc"]

    def build(self, out: str, rule: str, sources: list[str], flags: list[str] | None = None) -> str:
        escaped = [str(s).replace(" ", "$ ") for s in (out, *sources)]
        self.lines += [f"build {escaped[0]}: {rule} {' '.join(escaped[1:])}"]
        if flags:
            self.lines += [f"  flags = {' '.join(flags)}"]
        return out

    def run(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        text = "\n".join(["ninja_required_version = 1.5", *self.lines, ""])
        path = self.folder / self.name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
        jobs = [f"-j{os.environ['MAX_JOBS']}"] if "MAX_JOBS" in os.environ else []
        done = subprocess.run(
            [ninja(), "-C", str(self.folder), "-f", self.name, *jobs],
            text=True,
            capture_output=True,
        )
        if done.returncode:
            raise RuntimeError(f"building the kernels failed:\n{done.stdout}{done.stderr}")


def ninja() -> str:
    """Find ninja: the package's, beside this Python, or the system's."""
    beside = Path(sysconfig.get_paths()["scripts"]) / "ninja"
    found = str(beside) if beside.exists() else shutil.which("ninja")
    if not found:
        raise Obstacle("ninja was not found: pip install ninja")
    return found


def compiler() -> str:
    """Find the C++ compiler."""
    name = os.environ.get("CXX", "g++")
    found = shutil.which(name)
    if not found:
        raise Obstacle(f"the C++ compiler {name} was not found: install g++, or name one in CXX")
    return found


def torch_folder() -> Path:
    """Find the installed torch without importing it.

    pip's isolated build hides torch from imports, but it still lies in this Python's folder.
    """
    spec = importlib.util.find_spec("torch")
    folders = [Path(spec.origin).parent] if spec and spec.origin else []
    folders += [Path(sysconfig.get_paths()[key]) / "torch" for key in ("purelib", "platlib")]
    for folder in folders:
        if (folder / "include/torch/csrc/stable/library.h").exists():
            return folder
    raise Obstacle("torch 2.11 or newer was not found: install it first")


def nvcc(wanted: str | None = None) -> str | None:
    """Find nvcc, unless REVGRAD_CUDA=0; REVGRAD_CUDA=1 insists on it."""
    wanted = wanted or os.environ.get("REVGRAD_CUDA", "")
    if wanted == "0":
        return None
    found = shutil.which("nvcc")
    if found is None and wanted == "1":
        raise Obstacle("REVGRAD_CUDA=1, but nvcc is not on the PATH")
    return found


def obstacle() -> str | None:
    """Say what keeps the library from being built here, if anything."""
    try:
        if sys.platform != "linux":
            raise Obstacle(f"the kernels are built on Linux only, not on {sys.platform}")
        if os.environ.get("REVGRAD_KERNELS") == "0":
            raise Obstacle("REVGRAD_KERNELS=0")
        torch_folder(), compiler(), ninja(), nvcc()
    except Obstacle as reason:
        return str(reason)
    return None


def library(out: Path = LIBRARY, folder: Path | None = None, sanitize: bool = False) -> Path:
    """Build the operators' library.

    Args:
        out: The file to write.
        folder: Where objects go; build/ in the checkout by default.
        sanitize: Build with the sanitizers, without CUDA.
    """
    build = Ninja(folder or ROOT / "build" / ("kernels-sanitize" if sanitize else "kernels"))
    torch = torch_folder()
    x86 = platform.machine() in ("x86_64", "AMD64")
    flags = [
        *COMMON,
        *(SANITIZE if sanitize else FAST),
        TORCH_TARGET,
        "-isystem",
        f"{torch}/include",
    ]
    flags += ["-DREVGRAD_X86_VARIANTS"] if x86 else []
    build.rule(
        "cxx", [compiler(), *flags, "$flags", "-MMD", "-MF", "$out.d", "-c", "$in", "-o", "$out"]
    )
    objects = []
    # The slowest first, so that no core waits for them at the end.
    cuda = None if sanitize else nvcc()
    if cuda:
        objects += _cuda_objects(build, cuda, torch)
    for source in sorted((CSRC / "cpu").glob("*_loops.cpp")):
        for name, march in {**(VARIANTS if x86 else {}), "generic": []}.items():
            isa = [*march, f"-DREVGRAD_ISA={name}"]
            objects.append(build.build(f"{source.stem}.{name}.o", "cxx", [str(source)], isa))
    plain = [p for p in sorted((CSRC / "cpu").glob("*.cpp")) if not p.stem.endswith("_loops")]
    for source in [CSRC / "ops.cpp", *plain]:
        objects.append(build.build(f"{source.stem}.o", "cxx", [str(source)]))
    build.rule("link", [compiler(), *_link_flags(torch, cuda, sanitize)], deps=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    build.build(str(out), "link", objects)
    build.run()
    return out


def _link_flags(torch: Path, cuda: str | None, sanitize: bool) -> list[str]:
    # libtorch stays among the needed libraries although nothing here names it: in a CUDA build of
    # torch it brings libtorch_cuda, and with it the current stream (cuda/stream.h).
    flags = ["-shared", "$in", "-o", "$out", f"-L{torch}/lib", "-Wl,--no-as-needed", "-ltorch"]
    flags += ["-Wl,--as-needed", "-ltorch_cpu"]
    if sanitize:
        flags += ["-fsanitize=address,undefined"]
    if cuda:
        flags += [*_cuda_libraries(cuda), "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
    return flags


def _cuda_objects(build: Ninja, cuda: str, torch: Path) -> list[str]:
    archs = os.environ.get("REVGRAD_ARCHS", ARCHS).split(",")
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
    targets.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    host = [f"-Xcompiler={flag}" for flag in ("-fPIC", "-fvisibility=hidden", *WARNINGS)]
    flags = ["-std=c++17", "-O3", "-Werror", "all-warnings", *host, *targets, TORCH_TARGET]
    include = ["-isystem", f"{torch}/include"]
    command = [cuda, *flags, *include, "-MMD", "-MF", "$out.d", "-c", "$in", "-o", "$out"]
    build.rule("nvcc", command)
    sources = sorted((CSRC / "cuda").glob("*.cu"))
    return [build.build(f"{s.stem}.cu.o", "nvcc", [str(s)]) for s in sources]


def _cuda_libraries(cuda: str) -> list[str]:
    """Ask nvcc itself where its libraries are; it may be a wrapper far from them."""
    said = subprocess.run(
        [cuda, "-dryrun", "-x", "cu", os.devnull], capture_output=True, text=True
    ).stderr
    for line in said.splitlines():
        if line.startswith("#$ LIBRARIES="):
            return line.split("=", 1)[1].replace('"', "").split()
    return []


def cuda_objects() -> int:
    """Only compile the CUDA sources; returns how many there are."""
    build = Ninja(ROOT / "build" / "kernels", "cuda.ninja")
    found = nvcc("1")
    assert found is not None
    count = len(_cuda_objects(build, found, torch_folder()))
    build.run()
    return count


def simulator(folder: Path | None = None, sanitize: bool = False) -> Path:
    """Build the module that runs the CUDA kernels on the CPU, for tests."""
    import pybind11

    build = Ninja(folder or ROOT / "build" / ("simt-sanitize" if sanitize else "simt"))
    flags = [*COMMON, *(SANITIZE if sanitize else ["-O2"]), "-DREVGRAD_SIMT"]
    for include in (pybind11.get_include(), sysconfig.get_paths()["include"]):
        flags += ["-isystem", include]
    build.rule("cxx", [compiler(), *flags, "-MMD", "-MF", "$out.d", "-c", "$in", "-o", "$out"])
    sources = sorted((CSRC / "simt").glob("*.cpp"))
    objects = [build.build(f"{s.stem}.o", "cxx", [str(s)]) for s in sources]
    link = ["-fsanitize=address,undefined"] if sanitize else []
    build.rule("link", [compiler(), "-shared", "$in", "-o", "$out", *link], deps=False)
    out = build.folder / f"{SIMULATOR}{sysconfig.get_config_var('EXT_SUFFIX')}"
    build.build(str(out), "link", objects)
    build.run()
    return out


def main() -> None:
    """Build what the command line names."""
    parser = argparse.ArgumentParser(description="Build revgrad's kernels.")
    parser.add_argument("what", choices=["library", "simt", "cuda"])
    parser.add_argument("--sanitize", action="store_true", help="with ASan and UBSan")
    args = parser.parse_args()
    try:
        if args.what == "library":
            out = ROOT / "build" / "kernels-sanitize" / "_C.so" if args.sanitize else LIBRARY
            print(library(out, sanitize=args.sanitize).relative_to(ROOT))
        elif args.what == "simt":
            print(simulator(sanitize=args.sanitize).relative_to(ROOT))
        else:
            print(f"{cuda_objects()} CUDA sources compile without a warning")
    except (Obstacle, RuntimeError) as error:
        sys.exit(f"revgrad: {error}")


if __name__ == "__main__":
    main()
