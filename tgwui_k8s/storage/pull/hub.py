"""Hugging Face's hub, or a mirror of it: `hf://ORG/NAME@REVISION`.

HF_TOKEN (for gated models) and HF_ENDPOINT are huggingface_hub's own variables.
"""

from __future__ import annotations

from typing import Any

from tgwui_k8s.errors import DownloadError
from tgwui_k8s.storage.pull.snapshot import Checksum, Location, RemoteFile, Snapshot

_TIMEOUT_SECONDS = 30.0


class HubSource:
    """One repository of models."""

    def __init__(self, repository: str, revision: str | None) -> None:
        self._repository = repository
        self._wanted = revision
        self._commit = ""

    @property
    def default_name(self) -> str:
        """As text-generation-webui names it: `TheBloke_Llama-2-7B-Chat-AWQ`."""
        return self._repository.replace("/", "_")

    def snapshot(self) -> Snapshot:
        """The files at one commit."""
        # Imported here because it takes half a second.
        from huggingface_hub import HfApi
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
        from huggingface_hub.errors import RevisionNotFoundError as NoRevisionError

        try:
            info = HfApi().model_info(
                self._repository,
                revision=self._wanted,
                files_metadata=True,
                timeout=_TIMEOUT_SECONDS,
            )
        except GatedRepoError:
            raise DownloadError(
                f"{self._repository} is gated: accept its licence on its page, and set HF_TOKEN to "
                "a token of the account that has"
            ) from None
        except NoRevisionError:
            raise DownloadError(f"{self._repository} has no revision '{self._wanted}'") from None
        except RepositoryNotFoundError:
            raise DownloadError(
                f"{self._repository} does not exist, or is private: then set HF_TOKEN"
            ) from None
        except Exception as error:  # the HTTP library's own errors, which differ by its version
            reason = " ".join(str(error).split())[:300]
            raise DownloadError(f"cannot list {self._repository}: {reason}") from error
        self._commit = info.sha or ""
        files = tuple(_remote_file(sibling) for sibling in info.siblings or ())
        return Snapshot(f"hf://{self._repository}", self._commit, files)

    def locate(self, file: RemoteFile) -> Location:
        """The file at the snapshot's commit; the hub redirects to where its bytes are."""
        from huggingface_hub import get_token, hf_hub_url

        url = hf_hub_url(self._repository, file.path, revision=self._commit)
        token = get_token()
        return Location(url, {"Authorization": f"Bearer {token}"} if token else {})


def _remote_file(sibling: Any) -> RemoteFile:
    """Large files have a SHA-256, the others their git blob's name."""
    if sibling.size is None:
        raise DownloadError(f"the hub tells no size of {sibling.rfilename}")
    if sibling.lfs is not None:
        checksum = Checksum("sha256", sibling.lfs.sha256)
    else:
        checksum = Checksum("git-sha1", sibling.blob_id)
    return RemoteFile(sibling.rfilename, sibling.size, checksum)
