"""How the unedited model answers while it is attributed: scores of one that leans on an option say little of the task.

Engines count what is picked in passes that they make anyway (`engine.heard`); here the counts go along with the scores,
so that they are saved, taken up again and merged as these are, and the user is warned once.
"""

from __future__ import annotations

from typing import Any

from ..common.warning import warn
from ..data.forms import option_name
from ..methods import Collector
from ..results.answers import ENOUGH, Heard, leaning_words
from ..results.streaming import Streaming
from .job import Job


class Gathered(Streaming):
    """What a run gathers of its questions: scores, in the collector of the method, and how the model answered."""

    def __init__(self, collector: Collector, options: int) -> None:
        self.collector, self.heard = collector, Heard(options)

    @classmethod
    def of(cls, job: Job) -> Gathered:
        """Empty, for the questions of a job."""
        return cls(job.how.collector(job.anatomy.n_neurons), max(len(prompt.option_ids) for prompt in job.prompts))


class Caution:
    """Looks at how the model answers, and warns once where it leans on one option.

    `asked` are the counts of all questions, where they were asked before only some of them are scored: of those that a
    model answers right, the right option is always the one that it picks.
    """

    def __init__(self, form: str, asked: list[list[int]] | None, silent: bool) -> None:
        self.form, self.looked, self.said = form, False, silent
        self.asked = None if asked is None else Heard.of(asked)

    def found(self, heard: Heard) -> dict[str, Any]:
        """What a provenance says of it: nothing where the model leans on nothing."""
        leaning = (self.asked or heard).leaning()
        if leaning is None:
            return {}
        return {"leaning": {"option": option_name(self.form, leaning[0]), "share": leaning[1]}}

    def __call__(self, heard: Heard, last: bool = False) -> None:
        """Warn as soon as enough was heard, or at the last of what there is."""
        enough = not self.looked and (self.asked or heard.prompts >= ENOUGH)
        if self.said or not (last or enough):
            return
        self.looked = True
        if found := self.found(heard):
            self.said = True
            warn(leaning_words(self.form, **found["leaning"]))
