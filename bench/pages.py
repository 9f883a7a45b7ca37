"""The pages of docs/ that are made of results, each from all of them."""

from __future__ import annotations

from . import leaderboard, report

PAGES = {"performance.md": report.page, "leaderboard.md": leaderboard.page}
