import io

from revgrad.models.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_file_gets_ten_lines():
    stream = io.StringIO()
    _run(Progress(40, stream))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("step 4/40  loss 0.5  ") and lines[0].endswith(" left")
    assert lines[-1].startswith("step 40/40") and "took 0:00" in lines[-1]


def test_terminal_gets_one_line_written_over():
    stream = Terminal()
    _run(Progress(40, stream))
    assert stream.getvalue().count("\r") == 40
    assert stream.getvalue().count("\n") == 1 and stream.getvalue().endswith("\n")


def _run(progress):
    for step in range(1, 41):
        progress(step, "loss 0.5")
