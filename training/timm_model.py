"""Models of timm as networks that make maps at strides 4, 8, 16 and 32: the trunks of detectors."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from datalake.errors import UserError

STRIDES = (4, 8, 16, 32)
# Pixels of the square image by which a model shows its maps; not a side that any model is made for.
_PROBE = 64
_COUNTER = "num_batches_tracked"


class TimmError(UserError):
    """timm is missing, has no such model, or one that does not fit, or weights are of another one."""


class TimmModel:
    """A model of timm without its classifier, with random weights; `load` gives it others.

    It is no module: who uses it registers `network` under a name of its own.

    network: takes images float32 [B, 3, H, W] and returns its maps
    widths: channels of the maps at strides 4, 8, 16 and 32
    """

    network: Any

    def __init__(self, name: str) -> None:
        """Build it; raises TimmError where timm is missing, has no such model, or one that does not fit."""
        self.name = name
        self.network = _features_only(name)
        reductions: list[int] = self.network.feature_info.reduction()
        if missing := [stride for stride in STRIDES if stride not in reductions]:
            raise TimmError(
                f"trunk timm:{name}: it has maps at strides {_listed(reductions)} and none at {_listed(missing)};"
                " choose a model that goes down from 4 to 32"
            )
        # Of several at a stride the last has seen most.
        self._used = [len(reductions) - 1 - reductions[::-1].index(stride) for stride in STRIDES]
        channels: list[int] = self.network.feature_info.channels()
        self.widths = [channels[number] for number in self._used]
        with torch.no_grad():
            maps = self.maps(_forward(self.network, name))
        for one, width, stride in zip(maps, self.widths, STRIDES, strict=True):
            if one.shape != (1, width, _PROBE // stride, _PROBE // stride):
                raise TimmError(
                    f"trunk timm:{name}: of images of {_PROBE} x {_PROBE} pixels it makes a map {list(one.shape)} at"
                    f" stride {stride}, expected {[1, width, _PROBE // stride, _PROBE // stride]}"
                )

    def maps(self, found: Sequence[Tensor]) -> list[Tensor]:
        """Return of what `network` returned the maps at strides 4, 8, 16 and 32."""
        return [found[number] for number in self._used]

    def load(self, state: Mapping[str, Tensor], source: str) -> tuple[str, ...]:
        """Take the weights of a whole model of this name; return the names of those that have no place here.

        These are the classifier's, and what else leads to it alone. Raises TimmError, naming what is wrong with
        `source`, where a name is not the model's, one of the trunk's is missing, or a shape is another.
        """
        # timm joins the first parts of some names by an underscore where a model returns its maps.
        own = {_joined(name): name for name in self.network.state_dict()}
        # Nothing is computed there: names and shapes are enough.
        with torch.device("meta"):
            whole = {_joined(name) for name in _timm().create_model(self.name, pretrained=False).state_dict()}
        taken = {own[_joined(name)]: value for name, value in state.items() if _joined(name) in own}
        left_out = tuple(name for name in state if _joined(name) in whole - own.keys())
        unknown = [name for name in state if _joined(name) not in whole | own.keys()]
        missing = [name for name in own.values() if name not in taken and not name.endswith(_COUNTER)]
        shapes = {name: value.shape for name, value in self.network.state_dict().items()}
        other = [name for name, value in taken.items() if value.shape != shapes[name]]
        problems = [
            *([f"{_some(unknown)} are none of its weights"] if unknown else []),
            *([f"{_some(missing)} are missing"] if missing else []),
            *(f"{name} is {list(taken[name].shape)} instead of {list(shapes[name])}" for name in other[:1]),
        ]
        if problems:
            raise TimmError(f"{source}: not the weights of timm's {self.name}: {'; '.join(problems)}")
        self.network.load_state_dict({**self.network.state_dict(), **taken})
        return left_out

    def freeze(self, stages: int, norms: bool) -> list[nn.Module]:
        """Take the first stages and the batch norms from training; return the modules to be kept in eval mode.

        stages: 1 is all that leads to stride 4, 2 to 8 and so on; 0: none
        """
        if stages:
            # What the map at a stride depends on is all that leads there, whatever a model calls its parts.
            parameters = list(self.network.parameters())
            with torch.enable_grad():
                frozen_map = self.maps(_forward(self.network, self.name))[stages - 1]
                slopes = torch.autograd.grad(frozen_map.sum(), parameters, allow_unused=True)
            for parameter, slope in zip(parameters, slopes, strict=True):
                parameter.requires_grad_(slope is None)
        frozen: list[nn.Module] = []
        batch_norms = [one for one in self.network.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
        if norms:
            for norm in batch_norms:
                norm.requires_grad_(False)
            frozen += batch_norms
        # What has no parameters of its own, such as dropout, is frozen with the module that it is a part of.
        return frozen + [one for one in self.network.modules() if _is_frozen(one)]


def _is_frozen(module: nn.Module) -> bool:
    """Return whether a module has parameters, and none of them is trained."""
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def published_normalization(name: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return mean and deviation of the images that the published weights of a model were trained with.

    Raises TimmError where timm is missing or has no such model.
    """
    _check_name(name)
    try:
        published = _timm().get_pretrained_cfg(name)
    except RuntimeError as error:
        raise TimmError(f"trunk timm:{name}: {error}") from error
    if published is None:
        raise TimmError(
            f"trunk timm:{name}: timm publishes no weights of it, so nothing says how images are to be normalized;"
            " give image-mean and image-std"
        )
    return tuple(published.mean), tuple(published.std)


def _timm() -> ModuleType:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise TimmError("trunk timm:…: timm is not installed: pip install 'classroomnet[timm]'") from error
    module: ModuleType = timm
    return module


def _check_name(name: str) -> None:
    timm = _timm()
    # Anything else, hf-hub:… for one, would be downloaded, code and all.
    if ":" in name or "/" in name or not timm.is_model(name):
        like = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise TimmError(
            f"trunk timm:{name}: timm {timm.__version__} has no such model"
            + (f"; it has {_listed(like)}" if like else "; timm.list_models() has all names")
        )


def _features_only(name: str) -> Any:
    """Return the model that makes maps, with random weights."""
    _check_name(name)
    try:
        return _timm().create_model(name, pretrained=False, features_only=True)
    except (RuntimeError, AttributeError, NotImplementedError, TypeError, AssertionError, ValueError) as error:
        raise TimmError(f"trunk timm:{name}: timm makes no maps of it (features_only): {_line(error)}") from error


def _forward(network: Any, name: str) -> list[Tensor]:
    """Return the maps that a network in eval mode makes of one image; the mode stays."""
    training = network.training
    try:
        maps: list[Tensor] = network.eval()(torch.zeros(1, 3, _PROBE, _PROBE))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise TimmError(
            f"trunk timm:{name}: it does not take images of any size that 32 divides: {_line(error)}"
        ) from error
    finally:
        network.train(training)
    return maps


def _joined(name: str) -> str:
    return name.replace(".", "_")


def _listed(values: Any) -> str:
    return ", ".join(map(str, values))


def _some(names: list[str]) -> str:
    return _listed(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
