"""Trained policies as a folder of three files, here or on the Hugging Face Hub: config.json, model.safetensors,
README.md.

huggingface_hub's `ModelHubMixin` rebuilds a model from numbers and texts that its constructor was given. A policy's
constructor takes networks, so this module builds these from the names of their classes, as far as they may be named.
"""

import inspect
import json
import math
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dp.files import write_bytes, write_json
from dp.modalities import Normalizer, parse_shape_meta
from dp.trusted import MAX_LAYERS, MAX_SIZE, MAX_VALUES_OBSERVED, PARTS, imported, is_from, is_ours

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"

FORMAT = "dp-policy-1"

MAX_BYTES, MAX_CONFIG_BYTES = 4 << 30, 1 << 20

SCALE = "#scale"
"""Ending of the names of tensors that hold the scale of each row of a matrix in eight bits."""

LARGE = 4096
"""Number of weights from which a matrix is stored in fewer bits. Smaller tensors stay as they are."""

MAX_DEPTH = 20
"""Most levels of nesting in a configuration."""

MAX_STEPS = 4096
"""Longest horizon, and most diffusion steps of an action at test time."""

CONVERT = "Convert it: python run.py workspace=export checkpoint={} format=safetensors to=FOLDER"
"""What to type for a policy of another project."""

Facts = Mapping[str, Any]
"""How a policy was made: "config" (of its training), "step", "versions", "n_threads"."""


P = TypeVar("P", bound=nn.Module)


class Pretrained(nn.Module):
    """Loads and saves a policy with its configuration.

    facts: how it was made; None for a policy that was put together in Python, which cannot be saved like this.
    """

    facts: Facts | None = None

    @classmethod
    def from_pretrained(
        cls: type[P], path_or_repo: str | Path, revision: str | None = None, trust: Collection[str] = ()
    ) -> P:
        """The policy in a folder that exists here, or in a repository of the Hub, ready to act.

        trust: packages besides ours whose classes its configuration may name. Their code runs.

        Raises:
            ValueError: if there is no policy, if it is damaged or too large, or if it names other classes.
        """
        folder = Path(path_or_repo).expanduser()
        if not folder.is_dir():
            folder = _downloaded(str(path_or_repo), revision)
        facts, weights = read(folder)
        policy = cls(**assemble(facts["config"], weights, trust))
        try:
            policy.load_state_dict(weights)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{folder} is damaged or holds no policy of dp: {reason:.200}") from None
        policy.facts = facts  # type: ignore[assignment]
        return policy.eval().requires_grad_(False)

    def save_pretrained(self, folder: str | Path, card: str | None = None) -> None:
        """Writes config.json, model.safetensors and README.md. card: text of the latter.

        Raises ValueError for a policy whose origin is not known.
        """
        if self.facts is None:
            raise ValueError(
                "this policy does not know how it was made, so nobody could load it: expected one from "
                "from_pretrained, or from python run.py workspace=export"
            )
        write(Path(folder), self.state_dict(), self.facts)
        write_bytes(Path(folder) / CARD, (card or default_card(self.facts)).encode())

    def push_to_hub(
        self, repo_id: str, private: bool = False, token: str | None = None, card: str | None = None
    ) -> str:
        """Creates the model repository, unless it exists, and uploads what `save_pretrained` writes.

        token: of the Hub; None: the one of `hf auth login`. Returns the address of the commit.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, card)
            return upload(folder, repo_id, private, token)


def upload(folder: str | Path, repo_id: str, private: bool = False, token: str | None = None) -> str:
    """Uploads the files of a folder to a model repository, which is created unless it exists.

    Returns the address of the commit.
    """
    from huggingface_hub import HfApi  # here, because only this needs a network

    api = HfApi(token=token)
    repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload a policy of dp").commit_url)


def _downloaded(repo_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        files = [CONFIG, WEIGHTS, CARD]
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=files))
    except HFValidationError:
        raise ValueError(f"{repo_id} is neither a folder nor the name of a repository (owner/name)") from None
    except OSError as error:  # of the Hub, or of the way to it
        reason = " ".join(str(error).split())
        raise ValueError(f"there is no folder {repo_id}, and the Hub does not give it: {reason:.200}") from error


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(facts, weights) of the policy in a folder. Without config.json, the header of the weights has the facts.

    Raises ValueError for a folder without a policy of this format, and for one that is damaged or too large.
    """
    weights_file, config_file = folder / WEIGHTS, folder / CONFIG
    if not weights_file.is_file():
        raise ValueError(f"{folder} holds no policy: {WEIGHTS} is missing")
    try:
        header, weights = read_tensors(weights_file)
        about = json.loads(_text(config_file)) if config_file.is_file() else _facts_in(header)
    except (SafetensorError, json.JSONDecodeError, RecursionError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} is damaged or holds no policy of dp: {str(error).splitlines()[0]}") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT or not isinstance(about.get("config"), dict):
        advice = (
            ". A policy of LeRobot? " + CONVERT.format(folder) if isinstance(about, dict) and "type" in about else ""
        )
        raise ValueError(f"{folder} holds no policy of dp: {CONFIG} lacks format={FORMAT}{advice}")
    return about, weights


def _facts_in(header: Mapping[str, str]) -> dict[str, Any]:
    return {**json.loads(header["facts"]), "format": header["format"]}


def _text(path: Path) -> str:
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes, expected at most {MAX_CONFIG_BYTES:,}")
    return path.read_text()


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """(header, weights) of a file that `write` made. Raises ValueError for one that is too large, SafetensorError and
    others for a damaged one."""
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes, expected at most {MAX_BYTES:,}")
    with safe_open(path, "pt") as file:
        header, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return header, {name: _whole(tensors, name) for name in tensors if SCALE not in name}


def write(folder: Path, weights: Mapping[str, Tensor], facts: Facts) -> None:
    """Writes config.json and model.safetensors. Killed meanwhile, it leaves no configuration of another policy."""
    (folder / CONFIG).unlink(missing_ok=True)
    write_tensors(folder / WEIGHTS, weights, facts, bits=32)
    write_json(folder / CONFIG, {"format": FORMAT, **_saved(facts)})


def write_tensors(path: Path, weights: Mapping[str, Tensor], facts: Facts, bits: int) -> None:
    """Writes the weights, with the facts in the header. bits: of each weight of large matrices: 8, 16 or 32."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        large = tensor.is_floating_point() and tensor.ndim >= 2 and tensor.numel() >= LARGE
        if large and bits == 8:
            tensors[name], tensors[name + SCALE] = _eight_bits(tensor)
        else:
            tensors[name] = (tensor.half() if large and bits == 16 else tensor).contiguous()
    write_bytes(path, save(tensors, {"format": FORMAT, "facts": json.dumps(_saved(facts))}))


def _saved(facts: Facts) -> dict[str, Any]:
    return {key: facts.get(key) for key in ("config", "step", "versions", "n_threads")}


def _eight_bits(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers from -127 to 127, and what one of them is worth in each row."""
    scale = tensor.flatten(1).abs().amax(1).clamp(min=1e-12) / 127
    return (tensor / _by_row(scale, tensor)).round().to(torch.int8).contiguous(), scale


def _whole(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """The weights `name` in 32 bits. Raises ValueError for a scale that is not one number per row."""
    tensor, scale = tensors[name], tensors.get(name + SCALE)
    if scale is not None:
        if tensor.dtype != torch.int8 or tensor.ndim < 2 or scale.shape != tensor.shape[:1]:
            raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}, but its scale has {list(scale.shape)}")
        return tensor.float() * _by_row(scale, tensor)
    return tensor.float() if tensor.dtype == torch.float16 else tensor


def _by_row(scale: Tensor, like: Tensor) -> Tensor:
    return scale.reshape(-1, *[1] * (like.ndim - 1))


def default_card(facts: Facts) -> str:
    """A model card with what every policy knows about itself. `workspace=export` writes one with results."""
    config = facts["config"]
    versions = ", ".join(f"{name} {version}" for name, version in (facts.get("versions") or {}).items())
    return (
        "---\nlibrary_name: dp\npipeline_tag: robotics\ntags: [robotics, diffusion-policy]\n---\n"
        f"# {config.get('name', 'policy')}\n\nA policy for {config['task'].get('name')}, trained for "
        f"{facts.get('step')} steps with {versions}. config.json has all its settings.\n"
    )


def assemble(
    config: Mapping[str, Any], weights: Mapping[str, Tensor] | None = None, trust: Collection[str] = ()
) -> dict[str, Any]:
    """The arguments of `DiffusionPolicy` that a training's configuration describes, with fresh weights.

    With `weights`, the networks are first built without memory and compared with them, so that a small file cannot ask
    for a large network. Raises ValueError for settings that no policy has, untrusted classes, and other networks.
    """
    try:
        _check_plain(config, "config")
        _check_images(config)
        obs, action = parse_shape_meta(config["task"]["shape_meta"])
        (action_dim,) = action.shape
        steps = {name: config[name] for name in ("horizon", "n_obs_steps", "n_action_steps", "noise_draws")}
        n_inference = config["scheduler"]["num_inference_steps"]
        _check_steps({**steps, "scheduler.num_inference_steps": n_inference})
        parts = {name: _Part(config, name, trust) for name in PARTS}
        scheduler = parts["scheduler"].built({})
        offered = {"action_dim": action_dim, "horizon": steps["horizon"], "n_obs_steps": steps["n_obs_steps"]}
        objective = parts["objective"].built({**offered, "scheduler": scheduler, "num_inference_steps": n_inference})
        specs = {"specs": obs, "shapes": {name: spec.shape for name, spec in obs.items()}}

        def networks() -> dict[str, Any]:
            encoder = parts["encoder"].built(specs)
            cond_dim = steps["n_obs_steps"] * encoder.out_dim
            dims = {"obs_dim": encoder.out_dim, "cond_dim": cond_dim, "n_times": objective.n_times}
            return {"encoder": encoder, "denoiser": parts["denoiser"].built({**offered, **dims})}

        if (
            weights is not None and parts["encoder"].ours and parts["denoiser"].ours
        ):  # the constructors of others may compute
            with torch.device("meta"):
                _check_shapes(networks(), weights)
        built = networks()
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the configuration describes no policy ({type(error).__name__}: {error})") from error
    return {
        **built, "objective": objective, "normalizer": Normalizer({**obs, "action": action}), "action_dim": action_dim,
        **steps,
    }  # fmt: skip


class _Part:
    """Makes a part of a policy: a class that may be named, and its arguments."""

    def __init__(self, config: Mapping[str, Any], place: str, trust: Collection[str]) -> None:
        package, kind = PARTS[place]
        settings = dict(config[place])
        target = settings.pop("_target_", None)
        self.ours = is_ours(target, package, kind)
        if not self.ours and not is_from(target, trust):
            root = str(target).partition(".")[0]
            raise ValueError(
                f"{place} is {target}, which is not to be trusted: not loaded. If you trust the package, give "
                f"trust=[{root!r}]"
            )
        if place == "scheduler":
            settings.pop("num_inference_steps")
        if "weights" in settings:  # to begin a training with
            settings["weights"] = None
        if self.ours:
            _check_arguments(settings, place)
        self.make: Callable[..., Any] = imported(str(target))
        self.settings = settings

    def built(self, offered: Mapping[str, Any]) -> Any:
        """The part, given those others that its constructor names."""
        named = inspect.signature(self.make).parameters
        return self.make(**self.settings, **{name: part for name, part in offered.items() if name in named})


def _check_plain(value: object, at: str, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"{at:.60} is nested too far")
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        _check_plain(inner, f"{at}.{key}", depth + 1)


def _check_arguments(value: object, at: str) -> None:
    """Raises ValueError for a size that no network has, and for a class among the arguments."""
    if isinstance(value, int) and abs(value) > MAX_SIZE:
        raise ValueError(f"{at}={value!r:.40}, expected at most {MAX_SIZE}")
    if isinstance(value, list) and len(value) > MAX_LAYERS:
        raise ValueError(f"{at} has {len(value)} values, expected at most {MAX_LAYERS}")
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if str(key).startswith("_"):
            raise ValueError(f"{at}.{key}={inner!r:.60} is not to be trusted: not loaded")
        _check_arguments(inner, f"{at}.{key}")


def _check_images(config: Mapping[str, Any]) -> None:
    """Raises ValueError for observations, or images that an encoder makes of them, that no policy has."""
    sizes = {f"shape_meta.obs.{name}": entry["shape"] for name, entry in config["task"]["shape_meta"]["obs"].items()}
    sizes["encoder.resize"] = config["encoder"].get("resize") or []
    for name, size in sizes.items():
        if not isinstance(size, list) or not all(type(side) is int and side > 0 for side in size):
            raise ValueError(f"{name}={size!r:.60}, expected a list of whole numbers")
        if math.prod(size) > MAX_VALUES_OBSERVED:
            raise ValueError(f"{name}={size!r:.60}, expected at most {MAX_VALUES_OBSERVED:,} numbers")


def _check_steps(steps: Mapping[str, object]) -> None:
    for name, value in steps.items():
        if type(value) is not int or not 1 <= value <= MAX_STEPS:
            raise ValueError(f"{name}={value!r:.40}, expected a whole number from 1 to {MAX_STEPS}")


def _check_shapes(networks: Mapping[str, nn.Module], weights: Mapping[str, Tensor]) -> None:
    """Raises ValueError, naming the first difference, unless `weights` fit the networks."""
    own = {f"{part}.{name}": t for part, network in networks.items() for name, t in network.state_dict().items()}
    given = {name: tensor for name, tensor in weights.items() if name.startswith(("encoder.", "denoiser."))}
    for name in sorted(own.keys() | given.keys()):
        shapes = [list(held[name].shape) if name in held else None for held in (given, own)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"the weights are of another architecture: {name} is {shapes[0]}, expected {shapes[1]}")
