"""Attaching an adapter to a transformer, from the settings of a run or from what a file says."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from acestep.adapters.base import Adapter, refuse_second
from acestep.adapters.families import FAMILIES
from acestep.adapters.specs import Spec
from acestep.adapters.targets import find_targets
from acestep.core.errors import UserError, did_you_mean
from acestep.model.names import module_to_original
from acestep.settings import AdapterSettings

if TYPE_CHECKING:
    from torch import nn

_log = logging.getLogger(__name__)


def attach(transformer: nn.Module, settings: AdapterSettings) -> Adapter:
    """Attach a new adapter that changes nothing yet to an ACE-Step transformer.

    The first weights come from torch's generator of the CPU. Raises a UserError when the transformer carries an
    adapter already or has not exactly the modules wanted.
    """
    refuse_second(transformer)
    family = FAMILIES[settings.adapter]
    names = find_targets(transformer, settings)
    _refuse_unknown_patterns(settings, names)
    adapter = family.adapter_class(transformer, names, family.spec.from_settings(settings))
    for note in adapter.notes:
        _log.warning(note)
    return adapter


def _refuse_unknown_patterns(settings: AdapterSettings, modules: Sequence[str]) -> None:
    """A rank for a module that is not adapted would have no effect: it is a mistake, not a wish."""
    adapted = {module_to_original(name) for name in modules}
    for name in ("rank_pattern", "alpha_pattern"):
        if unknown := [module for module in getattr(settings, name) if module not in adapted]:
            raise UserError(
                f'Setting "{name}" names {unknown[0]}, which gets no adapter.',
                fix="Remove it, or widen attention, train_mlp or layers." + did_you_mean(unknown[0], adapted),
            )


def attach_spec(transformer: nn.Module, kind: str, spec: Spec, modules: Sequence[str]) -> Adapter:
    """Attach an adapter as a file describes it."""
    return FAMILIES[kind].adapter_class(transformer, modules, spec)
