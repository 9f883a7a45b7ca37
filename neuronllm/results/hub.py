"""Neuron sets on the Hugging Face Hub: a repository is what `save_pretrained` writes, with a card that says more."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..common.errors import InputError
from .cards import REPOSITORY, TAG, front_matter, model_id, report_table

UNREACHED = "the Hub cannot be reached"


class OnHub:
    """What a saved set needs to be pushed."""

    provenance: dict[str, Any]

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        raise NotImplementedError

    def card(self, name: str) -> str:
        raise NotImplementedError

    def push_to_hub(
        self,
        repo_id: str,
        *,
        report: Any = None,
        base_model: str | None = None,
        license: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = "A neuron set of neuronllm",
    ) -> str:
        """Upload the set to the repository "user/name", made where there is none; returns the address of the commit.

        Its card shows `report` (of `nl.evaluate`) as a table, and is tagged with the model that the set is of, where
        `base_model` or the set names one by its id, and with the license, if one is given. private, token, revision: as
        in huggingface_hub.

        >>> neurons.push_to_hub("user/facts", report=report, license="apache-2.0")   # doctest: +SKIP
        >>> nl.NeuronSet.from_pretrained("user/facts")                               # doctest: +SKIP
        """
        if not REPOSITORY.fullmatch(repo_id):
            raise InputError(f"repo_id={repo_id!r}: give user/name")
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made) / "set"
            self.save_pretrained(folder)
            head = front_matter(TAG, base_model or model_id(self.provenance), license=license)
            card = "\n".join([*head, "", self.card(repo_id), *report_table(report)])
            (folder / "README.md").write_text(card, encoding="utf-8")
            return _upload(folder, repo_id, private, token, revision, commit_message)


def folder_of(
    name: str | os.PathLike[str], revision: str | None, token: str | bool | None, files: Sequence[str]
) -> str | os.PathLike[str]:
    """A folder as it is; of the name of a repository, the folder that its files were downloaded to."""
    path = os.fspath(name)
    # In a folder that is there, a name that is missing is a slip, and nobody's repository.
    local = os.path.exists(path) or os.path.isdir(os.path.dirname(path)) or not REPOSITORY.fullmatch(path)
    if not local:
        return _download(path, revision, token, files)
    if revision is not None:
        raise InputError(f"revision={revision!r}: {path} is a folder, which has none; give user/name of the Hub")
    return name


def _upload(
    folder: Path, repo_id: str, private: bool | None, token: str | bool | None, revision: str | None, message: str
) -> str:
    from huggingface_hub import HfApi

    api = HfApi(token=token, library_name=TAG)
    with _in_one_line(repo_id, revision):
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, revision=revision, commit_message=message))


def _download(repo_id: str, revision: str | None, token: str | bool | None, files: Sequence[str]) -> str:
    from huggingface_hub import HfApi

    api = HfApi(token=token, library_name=TAG)
    with _in_one_line(repo_id, revision, "no such folder here, and "):
        return str(api.snapshot_download(repo_id, revision=revision, allow_patterns=list(files)))


@contextmanager
def _in_one_line(repo_id: str, revision: str | None, before: str = "") -> Iterator[None]:
    """What the Hub's client raises, as one line about the repository."""
    from huggingface_hub import errors

    of_client: Any = errors.HfHubHTTPError.__bases__[0]  # of whichever HTTP library it uses
    try:
        yield
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{repo_id}: the Hub has no revision {revision!r} of it") from error
    except errors.RepositoryNotFoundError as error:
        why = "the Hub shows no repository of that name: check it, and log in (hf auth login) if it is private or gated"
        raise InputError(f"{repo_id}: {before}{why}") from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        why = f"{UNREACHED}: go online (HF_HUB_OFFLINE=0), or give the folder of a saved set"
        raise InputError(f"{repo_id}: {before}{why}") from error
    except (errors.HFValidationError, errors.LocalTokenNotFoundError, OSError, of_client) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{repo_id}: {before}the Hub says: {first}") from error
