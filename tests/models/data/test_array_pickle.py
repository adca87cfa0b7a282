"""Pickles of arrays come out equal, and nothing that a pickle asks for is run."""

import builtins
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from revgrad.models.data import array_pickle
from revgrad.models.data.array_pickle import ForbiddenPickleError, load_arrays

CONTENT = {
    "image": np.arange(6.0).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "masks": [np.eye(3, dtype=bool), np.arange(4, dtype=np.uint8)],
    "big-endian": np.arange(3, dtype=">i4"),
    "strided": np.arange(10)[::2],
    "empty": np.zeros((0, 3)),
    "of no axes": np.array(2.5),
    "numbers": (1, 2.5, None, True, np.float64(3.25), np.int16(-4)),
    "name": "é",
}


def written(path, value, protocol=4):
    path.write_bytes(pickle.dumps(value, protocol))
    return path


def same(one, other):
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("protocol", range(6))
def test_what_was_written_comes_back(tmp_path, protocol):
    assert same(CONTENT, load_arrays(written(tmp_path / "a.pickle", CONTENT, protocol)))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_files_of_either_numpy_are_read(tmp_path, protocol):
    # The modules' names have different lengths, which the newer protocols write down.
    data = pickle.dumps(CONTENT, protocol)
    for module in (b"multiarray", b"numeric"):
        new, old = b"numpy._core." + module, b"numpy.core." + module
        data = data.replace(bytes([0x8C, len(new)]) + new, bytes([0x8C, len(old)]) + old)
        data = data.replace(b"c" + new + b"\n", b"c" + old + b"\n")
    assert b"numpy._core" not in data and b"numpy.core" in data
    if protocol >= 4:
        data = data[:2] + b"\x95" + (len(data) - 11).to_bytes(8, "little") + data[11:]
    path = tmp_path / "a.pickle"
    path.write_bytes(data)
    assert same(CONTENT, load_arrays(path))


def test_an_array_written_by_python_2_is_read(tmp_path):
    # Protocol 2 with the raw bytes as an 8-bit string, as Python 2 had them.
    raw = np.arange(200, 203, dtype=np.uint8).tobytes()
    data = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
        b"(K\x01K\x03\x85cnumpy\ndtype\n(U\x02u1K\x00K\x01tR"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x03" + raw + b"tb."
    )
    (tmp_path / "a.pickle").write_bytes(data)
    assert load_arrays(tmp_path / "a.pickle").tolist() == [200, 201, 202]


class Asks:
    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, r"(posix|nt)\.system"),
        (builtins.eval, r"(builtins|__builtin__)\.eval"),
        (np.load, r"numpy\.load"),
        (subprocess.getoutput, r"(subprocess|commands)\.getoutput"),
    ],
)
def test_a_pickle_that_asks_for_code_runs_nothing(tmp_path, protocol, function, name):
    witness = tmp_path / "witness"
    command = f"touch {witness}" if function is not eval else f"open({str(witness)!r}, 'w')"
    path = written(tmp_path / "a.pickle", {"x": Asks(function, command)}, protocol)
    with pytest.raises(
        ForbiddenPickleError, match=rf"a\.pickle: asks for {name}, which was not run"
    ):
        load_arrays(path)
    assert not witness.exists()
    if function is os.system:
        pickle.loads(path.read_bytes())
        assert witness.exists()  # the file was dangerous


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([None, {}]), "data type 'O8'"),
        (np.zeros(2, [("a", "f8")]), "data type 'V8'"),
        (np.ma.ones(2), r"asks for numpy\.ma"),
        (Asks(np.dtype, "O"), "data type 'O'"),
        (np.array("text"), "data type 'U4'"),
    ],
)
def test_other_arrays_are_refused(tmp_path, value, message):
    with pytest.raises(ForbiddenPickleError, match=message):
        load_arrays(written(tmp_path / "a.pickle", value))


def test_an_array_whose_shape_does_not_fit_its_bytes_is_refused(tmp_path):
    data = pickle.dumps(np.zeros(77, np.uint8), 2)
    assert data.count(b"K\x4d") == 1  # its length
    (tmp_path / "a.pickle").write_bytes(data.replace(b"K\x4d", b"K\x4e"))
    with pytest.raises(ValueError, match=r"shape \(78,\) has 77 bytes"):
        load_arrays(tmp_path / "a.pickle")


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_damage_gives_an_error_or_a_value_and_never_another_end(tmp_path_factory, data):
    whole = pickle.dumps(CONTENT, data.draw(st.sampled_from([2, 4, 5])))
    position = data.draw(st.integers(0, len(whole) - 1))
    value = data.draw(st.binary(min_size=0, max_size=1))  # cut off, or another byte
    damaged = whole[:position] + value + (whole[position + 1 :] if value else b"")
    path = tmp_path_factory.mktemp("damaged") / "a.pickle"
    path.write_bytes(damaged)
    try:
        load_arrays(path)
    except ValueError as error:
        assert str(path) in str(error)


def test_a_pickle_cannot_change_what_the_next_one_gets(tmp_path):
    # BUILD sets attributes of whatever stands on the stack: here of what numpy.dtype stands for.
    data = b"\x80\x02cnumpy\ndtype\nN}U\x06poisonK\x05s\x86b."
    (tmp_path / "a.pickle").write_bytes(data)
    assert load_arrays(tmp_path / "a.pickle").poison == 5
    assert not any(hasattr(function, "poison") for function in array_pickle._ALLOWED.values())


@pytest.mark.parametrize("put", [b"r\x00\x00\x00\x7f", b"p2130706432\n"])
def test_damage_cannot_fill_the_memory(tmp_path, put):
    # Python's unpickler would set aside 32 GiB for the number 0x7f000000.
    (tmp_path / "a.pickle").write_bytes(b"\x80\x02}" + put + b".")
    with pytest.raises(ValueError, match="instruction 2 remembers something as number 2130706432"):
        load_arrays(tmp_path / "a.pickle")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.pickle: no such file"):
        load_arrays(tmp_path / "absent.pickle")


def test_a_module_is_not_even_imported(tmp_path):
    (tmp_path / "a.pickle").write_bytes(b"\x80\x02cantigravity\nfly\n.")
    with pytest.raises(ForbiddenPickleError, match=r"asks for antigravity\.fly"):
        load_arrays(tmp_path / "a.pickle")
    assert "antigravity" not in sys.modules


def test_a_list_nested_in_itself_many_times_is_read_once(tmp_path):
    value = [np.arange(3)]
    for _ in range(60):  # 2^60 places
        value = [value, value]
    found = load_arrays(written(tmp_path / "nested.pickle", value))
    for _ in range(60):
        assert found[0] is found[1]
        found = found[0]
    assert np.array_equal(found[0], np.arange(3))
