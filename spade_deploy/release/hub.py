"""Upload an artifact to a repository of the Hugging Face Hub. Nothing here needs PyTorch.

Where the Hub is, and who asks, is huggingface_hub's matter: the environment variables HF_ENDPOINT and HF_TOKEN, or the
token that `hf auth login` stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spade_deploy.artifact import MANIFEST, STYLE_DIRECTIONS, Artifact
from spade_deploy.errors import (
    ArtifactError,
    ConfigError,
    HubError,
    MissingDependencyError,
    SpadeError,
    ValidationFailedError,
    quoted,
    reason_of,
)
from spade_deploy.version import __version__

_OF_AN_ARTIFACT = ("generator.*", "encoder.*", "golden/*", STYLE_DIRECTIONS)
"""Files of an artifact that was uploaded before, which are removed unless the new one has them, too."""
_FORBIDDEN = (401, 403)


@dataclass(frozen=True)
class Upload:
    """An artifact on the Hub."""

    repository: str
    """The repository, USER/NAME."""
    url: str
    """The repository's page."""
    commit: str
    """The commit that has the artifact."""
    bytes: int
    """The size of all its files."""


def require_hub(repository: str) -> None:
    """See that an upload can work, before an export that takes minutes: the package, the name, the token, the network.

    Raises MissingDependencyError, ConfigError, HubError.
    """
    hub = _library()
    try:
        hub.utils.validate_repo_id(repository)
    except hub.errors.HFValidationError as error:
        raise ConfigError(
            f"`push_to_hub`: {quoted(repository)} is not the name of a repository, such as user/earth-model",
            hint="use letters, digits, '-', '_' and '.', with at most one '/'",
        ) from error
    if hub.get_token() is None:
        raise HubError(
            "`push_to_hub`: no token of the Hugging Face Hub is stored here",
            hint="make one that may write at https://huggingface.co/settings/tokens, then run `hf auth login`, or set"
            " the environment variable HF_TOKEN",
        )
    try:
        hub.HfApi().whoami()
    except Exception as error:
        raise _refused(error, repository) from error


def require_passed(artifact: Artifact) -> None:
    """Raise ArtifactError or ValidationFailedError unless the artifact's own report says that it passed."""
    report = artifact.report()
    if report is None:
        raise ArtifactError(
            f"{artifact.path} has no report of a validation, so it is not uploaded",
            hint="`spade export` validates what it writes: export the checkpoint again",
        )
    if report.get("passed") is not True:
        raise ValidationFailedError(f"{artifact.path} failed its validation, so it is not uploaded")


def push_to_hub(artifact: Artifact, repository: str, *, public: bool = False) -> Upload:
    """Upload the files that the manifest names, and the manifest, as one commit; engines stay here.

    repository: USER/NAME, or NAME for one of the token's owner. It is made if it is not there: private, unless
    `public`. Files there that are not of an artifact stay. Raises HubError, ArtifactError, ValidationFailedError.
    """
    require_passed(artifact)
    hub, source = _library(), artifact.manifest.source
    hub.utils.disable_progress_bars()
    step = "" if source.step is None else f", step {source.step}"
    try:
        api = hub.HfApi(library_name="spade-deploy", library_version=__version__)
        place = api.create_repo(repository, private=not public, exist_ok=True)
        made = api.upload_folder(
            repo_id=place.repo_id,
            folder_path=artifact.path,
            allow_patterns=[MANIFEST, *artifact.manifest.files],
            delete_patterns=list(_OF_AN_ARTIFACT),
            commit_message=f"Upload {source.run}{step}, exported by spade-deploy {__version__}",
        )
    except Exception as error:  # its transports raise errors of several libraries, without a common base
        raise _refused(error, repository, artifact) from error
    if Artifact.open(artifact.path).manifest != artifact.manifest:
        raise HubError(
            f"{artifact.path} was exported again while it was uploaded: {repository} may have files of both exports",
            hint="upload it again",
        )
    size = sum(fact.bytes for fact in artifact.manifest.files.values())
    return Upload(place.repo_id, str(place), made.oid, size)


def _library() -> Any:
    """huggingface_hub with the modules that are used here. Raises MissingDependencyError."""
    try:
        import huggingface_hub
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "`push_to_hub` needs huggingface_hub, which is not installed", hint="pip install 'spade-deploy[hub]'"
        ) from error
    return huggingface_hub


def _refused(error: Exception, repository: str, artifact: Artifact | None = None) -> SpadeError:
    """The error of an upload: the Hub refused it, or was not reached. artifact: None before it is made."""
    endpoint = _library().constants.ENDPOINT
    status = getattr(getattr(error, "response", None), "status_code", None)
    did = "cannot be used" if status is None else "refuses this token" if status in _FORBIDDEN else "refuses the upload"
    if artifact is None:
        state, again = "nothing was exported yet", "export without `push_to_hub`, and upload the artifact later"
    else:
        state = f"{artifact.path} itself is complete"
        again = f"`spade export {artifact.path} --push-to-hub {repository}` uploads it without another export"
    if status in _FORBIDDEN:
        hint = f"give a token that may write to {repository}: `hf auth login`, or the environment variable HF_TOKEN"
    else:
        hint = "check the network and the name of the repository"
    reasons = [reason_of(error), *([reason_of(error.__cause__)] if error.__cause__ is not None else [])]
    reason = "; ".join(dict.fromkeys(text.rstrip(".") for text in reasons))
    return HubError(f"`push_to_hub`: {endpoint} {did}: {reason}; {state}", hint=f"{hint}; {again}")
