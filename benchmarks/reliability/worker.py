"""Runs the cases on one engine in a process of its own, because some libraries crash.

Usage: python -m revgrad.benchmarks.reliability.worker ENGINE FIRST_CASE
"""

from __future__ import annotations

import json
import sys
import warnings

from revgrad.benchmarks.reliability.cases import CASES, Case
from revgrad.benchmarks.reliability.engines import BUILDERS, kinds
from revgrad.benchmarks.reliability.setup import MismatchError, NotOfferedError, Setup


def judge(engine: str, case: Case) -> tuple[str, str]:
    """The outcome of a case on all of an engine's networks: the worst of them, and why."""
    tried = [kind for kind in case.kinds if kind in kinds(engine)]
    outcomes = [_judge_one(engine, case, kind) for kind in tried] or [("not offered", "")]
    order = ("right", "not offered", "error", "wrong")
    return max(outcomes, key=lambda outcome: order.index(outcome[0]))


def _judge_one(engine: str, case: Case, kind: str) -> tuple[str, str]:
    try:
        case.run(Setup(BUILDERS[engine], kind))
    except MismatchError as error:
        return "wrong", f"{kind}: {error}"
    except NotOfferedError as error:
        return "not offered", str(error)
    except Exception as error:
        return "error", f"{kind}: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
    return "right", ""


def main(engine: str, first: int) -> None:
    """Print the number of each case before it runs, and its outcome after."""
    warnings.simplefilter("ignore")
    for i, case in enumerate(CASES[first:], first):
        print(json.dumps({"case": i}), flush=True)
        outcome, why = judge(engine, case)
        print(json.dumps({"case": i, "outcome": outcome, "why": why}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
