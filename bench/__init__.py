"""Benchmarks: one command, results checked before they are timed, figures only from JSON that a run wrote.

    python -m bench list
    python -m bench run engine.ig --threads 1 2
    python -m bench report

`harness.py` runs a case (check, then interleaved timing, then peak memory in processes of their own), `suites.py` knows
which benchmarks there are, `report.py` makes docs/performance.md and `leaderboard.py` docs/leaderboard.md from the JSON
files in results/, `conditions.py` what both say about how it was measured and what was not.
"""
