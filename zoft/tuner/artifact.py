"""The tuner: PertNN weights and what is needed to use them, as a folder of safetensors and JSON."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from safetensors.torch import save as serialised
from torch import nn

from zoft.blocks import Blocks, weights_hash
from zoft.errors import UsageError
from zoft.names import HUB_NAME, Resolved
from zoft.noise import NOISES, GaussianTable
from zoft.tuner import layout
from zoft.tuner.binding import match
from zoft.tuner.bound import BoundTuner
from zoft.tuner.card import RESULTS, card, results_of
from zoft.tuner.config import (
    CARD_FILE,
    CONFIG_FILE,
    PROVENANCE_FILE,
    WEIGHTS_FILE,
    BlockTable,
    NoiseConfig,
    TunerConfig,
)
from zoft.tuner.features import FeatureConstants, block_statistics
from zoft.tuner.index import check_listed, resolve_tuner
from zoft.tuner.normalization import NormalizationConfig
from zoft.tuner.pertnn import NetworkConfig, PertNN
from zoft.tuner.structure import PREFIX, Structure
from zoft.tuner.turns import renumbered

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """Where a tuner was read from.

    Attributes:
        name: what a user would write: the bare name, ``user/repo[/folder]``, or the folder.
        commit: the commit that was read from the Hub; None for a local folder.
        pinned: what reads exactly this tuner again, from the local cache where it was downloaded.
    """

    name: str
    commit: str | None = None
    pinned: str = ""

    def __str__(self) -> str:
        return f"{self.name} at commit {self.commit}" if self.commit else self.name


@dataclass(eq=False)
class Tuner:
    """A learned perturbation for a base model and its derivatives.

    Attributes:
        config: what the tuner is and which base it fits.
        network: the PertNNs.
        provenance: how it was learned; written to meta_train.json.
        origin: where it was read from; None for a tuner that was made here.
        structure: the learned structure within the blocks; None where directions are isotropic there.
    """

    config: TunerConfig
    network: PertNN
    provenance: dict[str, Any] = field(default_factory=dict)
    origin: Origin | None = None
    structure: Structure | None = None

    @classmethod
    def untrained(
        cls,
        model: nn.Module,
        network: NetworkConfig | None = None,
        normalization: NormalizationConfig | None = None,
        base_model_name_or_path: str = "",
        base_model_revision: str | None = None,
        noise: str = GaussianTable.name,
        seed: int = 0,
    ) -> Self:
        """A tuner at its initial values: what meta-training starts from, and the control beside it.

        Args:
            model: the base; its trainable parameters are the blocks.
            seed: seed of the initial values.
        """
        blocks = Blocks.of(model)
        network = network or NetworkConfig()
        config = TunerConfig(
            zoft_version=metadata.version("zoft"),
            base_model_name_or_path=base_model_name_or_path,
            base_model_revision=base_model_revision,
            blocks=BlockTable.of(blocks.names, blocks.shapes),
            network=network,
            constants=FeatureConstants.of(block_statistics(blocks)),
            normalization=normalization or NormalizationConfig(),
            noise=NoiseConfig(kind=noise, version=NOISES[noise].version),
        )
        return cls(config, PertNN(len(blocks), network, seed))

    def bind(self, model: nn.Module, batch_size: int | None = None) -> BoundTuner:
        """Fit the tuner to a model.

        Args:
            model: the base or a derivative; wrapper prefixes do not matter, and frozen parameters of
                the model may have rows that then stay unused.
            batch_size: examples a step; the recommended one by default.

        Raises:
            IncompatibleError: names or shapes differ; the report counts and names them. A vocabulary
                of another size in a derivative is only noted and warned of, and so are shapes that the
                tuner does not know.
        """
        found = match(self.config.blocks.names, self.config.blocks.shapes, model)
        for note in found.notes:
            warnings.warn(note, stacklevel=2)
        rows = torch.tensor(found.rows)
        network = PertNN(len(found.rows), self.config.network)
        network.load_state_dict({name: t[rows] for name, t in self.network.state_dict().items()})
        network.requires_grad_(False)
        return BoundTuner(
            network,
            self.config.constants,
            self.config.normalization,
            batch_size or self.config.recommended.batch_size,
            found.notes,
            self.structure.bind(found.names, found.shapes) if self.structure is not None else None,
            self.config.step_rule,
            renumbered([self.config.turns.of[row] for row in found.rows]) if self.config.turns is not None else (),
        )

    @property
    def digest(self) -> str:
        """Hash of everything that the tuner computes with; a comparison's records name tuners by it."""
        parts = {"blocks", "network", "constants", "normalization", "noise"}
        config = self.config.model_dump(mode="json", include=parts)
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
        digest.update(weights_hash(self.network).encode())
        if self.config.step_rule is not None:
            digest.update(json.dumps(self.config.step_rule.to_dict(), sort_keys=True).encode())
        if self.config.turns is not None:
            digest.update(json.dumps(self.config.turns.to_dict(), sort_keys=True).encode())
        if self.structure is not None:
            digest.update(json.dumps(self.structure.config.to_dict(), sort_keys=True).encode())
            self.structure.digest(digest)
        return digest.hexdigest()[:32]

    def structured(self, structure: Structure | None) -> Tuner:
        """The same tuner with another structure, or without one.

        Raises:
            UsageError: the structure is for other blocks.
        """
        blocks = self.config.blocks
        if structure is not None and (list(structure.names), [list(s) for s in structure.shapes]) != (
            blocks.names,
            blocks.shapes,
        ):
            raise UsageError("the structure is for other blocks than the tuner's", "Learn it on the tuner's base.")
        section = structure.config if structure is not None else None
        return replace(self, config=self.config.model_copy(update={"structure": section}), structure=structure)

    def recommending(self, **settings: Any) -> Tuner:
        """The same tuner with other recommended settings."""
        recommended = self.config.recommended.model_copy(update=settings)
        return replace(self, config=self.config.model_copy(update={"recommended": recommended}))

    def with_results(self, comparison: str | Path | Mapping[str, Any]) -> Tuner:
        """The same tuner with the results of a ``zoft compare`` for its card.

        Args:
            comparison: compare.json, as a file or its content.

        Raises:
            UsageError: it is none, or this tuner is not in it.
        """
        return replace(self, provenance={**self.provenance, RESULTS: results_of(comparison, self.digest)})

    def save_pretrained(self, folder: str | Path, name: str | None = None) -> Path:
        """Write the tuner's folder: README.md, tuner_config.json, tuner.safetensors, meta_train.json.

        Args:
            name: what the card tells its readers to write for the tuner; the folder by default.

        Raises:
            UsageError: ``folder`` is a file or cannot be written.
        """
        target = Path(folder)
        tensors = {name: t.detach().float().contiguous().cpu() for name, t in self.network.state_dict().items()}
        tensors |= self.structure.tensors() if self.structure is not None else {}
        weights = serialised(tensors, metadata={"format": "pt"})
        config = self.config.model_copy(update={"weights_sha256": hashlib.sha256(weights).hexdigest()})
        try:
            target.mkdir(parents=True, exist_ok=True)
            (target / WEIGHTS_FILE).write_bytes(weights)
            (target / CONFIG_FILE).write_bytes(_json(config.to_dict()))
            (target / PROVENANCE_FILE).write_bytes(_json(self.provenance))
            (target / CARD_FILE).write_text(card(config, self.provenance, name or "./FOLDER"), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write the tuner to {target}: {error.strerror}", "Give another folder.") from None
        return target

    @classmethod
    def from_pretrained(
        cls,
        id_or_path: str | Path,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> Self:
        """Read a tuner, strictly: from a folder, from the Hub, or one that comes with the package.

        Args:
            id_or_path: a ``Path`` is a folder; a string is resolved as ``--tuner`` is, see
                :mod:`zoft.names`: ``./folder``, ``user/repo[@revision]``, ``hf://...``, or a bare name.
            revision: branch, tag or commit on the Hub.
            subfolder: the folder within the repository, or within the local folder.
            token: of the Hub; by default HF_TOKEN, or what ``hf auth login`` keeps.
            cache_dir: the Hub's cache; HF_HOME's by default.
            local_files_only: do not ask the Hub.
            force_download: download again what is in the cache.

        Raises:
            UsageError: a name that is none, or two revisions.
            ArtifactError: the tuner cannot be had; a file is missing, damaged, or not what its
                configuration says; a pickle; or a format newer than this version of zoft reads.
        """
        place = Resolved(str(id_or_path), is_local=True) if isinstance(id_or_path, Path) else resolve_tuner(id_or_path)
        place = _completed(place, revision, subfolder)
        if place.note:
            warnings.warn(place.note, stacklevel=2)
        if place.is_local:
            folder = Path(place.path_or_repo, place.subfolder or "")
            origin = Origin(str(id_or_path), pinned=str(folder if folder.is_absolute() else Path.cwd() / folder))
        else:
            from zoft.tuner import hub

            folder, commit = hub.fetch(
                place,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                force_download=force_download,
            )
            pinned = f"hf://{Resolved(place.path_or_repo, commit, subfolder=place.subfolder)}"
            origin = Origin(str(Resolved(place.path_or_repo, subfolder=place.subfolder)), commit, pinned)
            _log.info("tuner %s", origin)
        tuner = cls.from_folder(folder)
        if isinstance(id_or_path, str):
            check_listed(id_or_path, folder / WEIGHTS_FILE)
        return replace(tuner, origin=origin)

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Read the tuner in a local folder; see :meth:`from_pretrained`."""
        config, weights, provenance = layout.read(folder)
        network = PertNN(len(config.blocks.names), config.network)
        network.load_state_dict({name: tensor for name, tensor in weights.items() if not name.startswith(PREFIX)})
        return cls(config, network, provenance, structure=layout.structure_of(config, weights))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str | None = None,
        token: str | bool | None = None,
    ) -> str:
        """Upload the tuner to the Hub, with a card that names ``repo_id``.

        Args:
            repo_id: ``user/repo``; made if there is none.
            private: whether a new repository is private.
            revision: the branch; made if there is none.
            create_pr: propose it as a pull request instead.
            commit_message: of the commit.
            token: of the Hub; by default HF_TOKEN, or what ``hf auth login`` keeps.

        Returns:
            Address of the commit, or of the pull request.

        Raises:
            UsageError: ``repo_id`` is none.
            ArtifactError: the Hub refuses it, or cannot be reached.
        """
        from zoft.tuner import hub

        if HUB_NAME.fullmatch(repo_id) is None or "@" in repo_id:
            raise UsageError(f"{repo_id!r} is no repository on the Hub", "Write user/repo.")
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, name=repo_id)
            return hub.push(
                Path(folder),
                repo_id,
                private=private,
                revision=revision,
                create_pr=create_pr,
                commit_message=commit_message or f"A zoft tuner for {self.config.base_model_name_or_path or 'a model'}",
                token=token,
            )


def _completed(place: Resolved, revision: str | None, subfolder: str | None) -> Resolved:
    """``place`` with what :meth:`Tuner.from_pretrained` was given beside the name."""
    if revision is not None:
        if place.is_local:
            raise UsageError(f"{place.path_or_repo} is a folder and has no revisions", "Leave out the revision.")
        if place.revision not in (None, revision):
            raise UsageError(f"two revisions are given, {place.revision} and {revision}", "Give one.")
        place = replace(place, revision=revision)
    if subfolder:
        if ".." in Path(subfolder).parts or Path(subfolder).is_absolute():
            raise UsageError(f"{subfolder!r} leads out of the repository", "Give a folder within it.")
        place = replace(place, subfolder="/".join(filter(None, (place.subfolder, subfolder))))
    return place


def _json(value: Any) -> bytes:
    # A record may hold half a surrogate pair, which UTF-8 cannot; this way it stays the escape that JSON has for it.
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
