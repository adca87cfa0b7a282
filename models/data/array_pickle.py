"""Read pickles of arrays without running anything that they ask for.

A pickle is a program: whatever it names is imported and called. Here nothing is. The few names
that arrays need stand for functions of this file, which check what they are given and make arrays
from the raw bytes; all other names are refused. NumPy's own routines for unpickling are not used:
they trust their input.
"""

from __future__ import annotations

import math
import os
import pickle
import pickletools
import re
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray


class ForbiddenPickleError(ValueError):
    """A pickle asks for something that a file of arrays has no need of."""


def load_arrays(path: str | os.PathLike[str]) -> Any:
    """Read a pickle of arrays, numbers and strings in dictionaries, lists and tuples.

    Any protocol, written by Python 2 or 3 and by NumPy 1 or 2. Arrays are of booleans, integers or
    floats, and read-only: their memory is that of the file's bytes.

    Raises:
        FileNotFoundError: There is no such file.
        ForbiddenPickleError: The file asks for something else, which is named. It has not run.
        ValueError: The file is damaged or no pickle.
    """
    try:
        with open(path, "rb") as file:
            _check_memo(file)
            file.seek(0)
            return _finished(_ArrayUnpickler(file, encoding="latin1").load(), {})
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except ForbiddenPickleError as error:
        raise ForbiddenPickleError(f"{path}: {error}") from None
    except Exception as error:
        # A damaged stream of instructions can fail in any way.
        raise ValueError(f"{path}: cannot be read as a pickle: {error!r}") from error


def _check_memo(file: BinaryIO) -> None:
    """Refuse a damaged stream that would fill the memory.

    Python's unpickler makes room for as many things to remember as the highest number given to
    one: a wrong byte can ask for gigabytes. Numbers are given in turn, so none is above the count
    of instructions.
    """
    for count, (instruction, argument, _) in enumerate(pickletools.genops(file)):
        if "PUT" in instruction.name and int(argument or 0) > count:
            raise ValueError(f"instruction {count} remembers something as number {argument}")


class _Dtype:
    """Stands for a NumPy data type while its pickle is read."""

    def __init__(self, code: Any, align: Any = False, copy: Any = True) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[biuf]\d{1,2}", code):
            raise ForbiddenPickleError(
                f"has an array of data type {code!r}; only booleans, integers and floats are read"
            )
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        byteorder, *rest = state[1:]
        if rest[:3] != [None, None, None] or byteorder not in ("<", ">", "|"):
            raise ForbiddenPickleError("has an array of a data type with fields")
        self.dtype = self.dtype.newbyteorder(byteorder)


class _Array:
    """Stands for an array from the moment that it is named until its bytes come."""

    array: NDArray[Any]

    def __init__(self, kind: Any, shape: Any, code: Any) -> None:
        if kind is not _NDARRAY:
            raise ForbiddenPickleError("has an array of another kind than numpy.ndarray")

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        # Python 2 wrote bytes as text.
        raw = data.encode("latin1") if isinstance(data, str) else data
        self.array = _from_buffer(raw, dtype, shape, "F" if fortran else "C")


_NDARRAY = object()


def _from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any) -> NDArray[Any]:
    """An array over the bytes of the file."""
    if not isinstance(buffer, bytes | bytearray) or not isinstance(dtype, _Dtype):
        raise ForbiddenPickleError("has an array that is not made of bytes")
    if math.prod(shape) * dtype.dtype.itemsize != len(buffer) or min(shape, default=0) < 0:
        raise ValueError(f"an array of shape {shape} has {len(buffer)} bytes")
    return np.frombuffer(buffer, dtype.dtype).reshape(shape, order=order)


def _scalar(dtype: Any, data: Any) -> Any:
    """A NumPy number as a Python one."""
    raw = data.encode("latin1") if isinstance(data, str) else data
    return _from_buffer(raw, dtype, (), "C").item()


def _no_bytes() -> bytes:
    """What protocol 2 has for an array without elements."""
    return b""


def _encode(text: Any, encoding: Any) -> bytes:
    """Bytes, as protocol 2 has them."""
    if encoding != "latin1" or not isinstance(text, str):
        raise ForbiddenPickleError(f"asks for the codec {encoding!r}")
    return text.encode("latin1")


# The name of the module is NumPy 1's or NumPy 2's.
_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    **{(module, "bytes"): _no_bytes for module in ("__builtin__", "builtins")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler that knows no names but those of arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "ndarray"):
            return _NDARRAY
        if (module, name) not in _ALLOWED:
            raise ForbiddenPickleError(
                f"asks for {module}.{name}, which was not run; only arrays, dictionaries, lists, "
                "strings and numbers are read. If you trust the file, convert it yourself"
            )
        function = _ALLOWED[module, name]
        # A new one each time: a pickle can set attributes of what it gets.
        return lambda *arguments: function(*arguments)


def _finished(value: Any, done: dict[int, Any]) -> Any:
    """Put the arrays in place of what stood for them, in dictionaries, lists and tuples.

    What stands in several places is done once, by its id: a few bytes can nest a list in itself so
    often that to go through all of it would never end.
    """
    if id(value) not in done:
        done[id(value)] = _finished_once(value, done)
    return done[id(value)]


def _finished_once(value: Any, done: dict[int, Any]) -> Any:
    if isinstance(value, _Array):
        return value.array
    if isinstance(value, dict):
        return {key: _finished(item, done) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_finished(item, done) for item in value)
    return value
