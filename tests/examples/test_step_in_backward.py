"""The example with the optimizer inside the backward pass."""

import re
import runpy
from pathlib import Path

FILE = Path(__file__).parents[2] / "examples" / "step_in_backward.py"


def test_gradients_leave_the_peak_and_weights_stay(capsys):
    main = runpy.run_path(str(FILE))["main"]
    assert main(["--depth", "12", "--channels", "128", "--steps", "2"]) == 0
    shown = capsys.readouterr().out
    peaks, gradients = zip(
        *re.findall(r"peak (\S+) MiB, of it gradients (\S+) MiB", shown), strict=True
    )
    assert float(peaks[1]) < float(peaks[0])
    assert float(gradients[1]) < float(gradients[0])
    assert "weights equal to the bit: True" in shown
