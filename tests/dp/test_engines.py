"""Every engine makes the same steps, and the reference one never waits for the device."""

import copy
import warnings
from collections.abc import Callable
from itertools import islice

import jaxtyping
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from dp import engines
from dp.data.batches import BatchOrder, ResidentLoader, StreamedLoader
from dp.data.windows import WindowDataset
from dp.denoisers import UNet1d
from dp.encoders import CNNEncoder
from dp.modalities import Normalizer
from dp.objectives import Diffusion
from dp.policy import DiffusionPolicy
from tests.specs import specs

CPU = torch.device("cpu")
SHAPES = {"image": (3, 96, 96), "agent_pos": (2,)}
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

LOSSES_AGREE = {"rtol": 2e-3, "atol": 2e-4}
"""Compiled kernels and CUDA's round differently, and training amplifies it: over 12 steps by no more than this."""


def make_policy(scheduler: type = DDIMScheduler, device: torch.device = CPU) -> DiffusionPolicy:
    torch.manual_seed(0)
    encoder = CNNEncoder(specs(**SHAPES), channels=(8, 8, 8, 8), feature_dim=16)
    policy = DiffusionPolicy(
        encoder,
        UNet1d(2, 2 * encoder.out_dim, channels=(16,), kernel_size=3, step_embed_dim=16, norm="layer"),
        Diffusion(scheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2"), 4),
        Normalizer(specs({"agent_pos": (2,), "action": (2,)})),
        horizon=16,
        n_obs_steps=2,
        n_action_steps=8,
        action_dim=2,
        noise_draws=2,
    )
    return policy.to(device)


@pytest.fixture(scope="module")
def windows() -> WindowDataset:
    generator = torch.Generator().manual_seed(0)
    obs = {
        "image": torch.randint(0, 256, (40, 96, 96, 3), generator=generator, dtype=torch.uint8),
        "agent_pos": torch.rand(40, 2, generator=generator),
    }
    table = torch.arange(24)[:, None] + torch.arange(16)
    return WindowDataset(obs, torch.rand(40, 2, generator=generator), table, n_obs_steps=2)


def train(
    windows: WindowDataset,
    engine: str,
    device: torch.device = CPU,
    steps: int = 12,
    grad_accumulation: int = 1,
    bf16: bool = False,
    streamed: bool = False,
) -> tuple[torch.Tensor, DiffusionPolicy]:
    """(loss, gradient norm) of every step, and the policy."""
    policy = make_policy(device=device).train()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    order = BatchOrder(len(windows), 8, seed=0)
    loader = StreamedLoader(windows, order, device, 0) if streamed else ResidentLoader(windows, order, device)
    step = engines.training_step(engine, engines.EagerStep(policy, optimizer, loader.load, 1.0, bf16))
    batches, results = iter(loader), []
    torch.manual_seed(1)
    for _ in range(steps):
        results.append(step(list(islice(batches, grad_accumulation))))
        schedule.step()
    return torch.stack(results).cpu(), policy


@pytest.fixture(scope="module")
def eager(windows: WindowDataset) -> torch.Tensor:
    return train(windows, "eager")[0]


def test_a_step_is_the_textbook_one(windows: WindowDataset, eager: torch.Tensor) -> None:
    policy = make_policy().train()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    order = BatchOrder(len(windows), 8, seed=0)
    torch.manual_seed(1)
    for number, (loss_there, norm_there) in enumerate(eager.tolist()):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 / (1 + number)
        samples = [windows[int(i)] for i in order.batch(number)]
        obs = {name: torch.stack([s["obs"][name] for s in samples]) for name in SHAPES}
        loss = policy.loss({"obs": obs, "action": torch.stack([s["action"] for s in samples])})
        optimizer.zero_grad()
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in policy.parameters()]).norm()
        for p in policy.parameters():
            p.grad *= min(1.0, 1 / (norm + 1e-6))
        optimizer.step()
        assert loss.item() == pytest.approx(loss_there, rel=1e-4)
        assert norm.item() == pytest.approx(norm_there, rel=1e-3)


def test_gradients_of_several_inputs_are_averaged(windows: WindowDataset) -> None:
    losses, policy = train(windows, "eager", steps=1, grad_accumulation=2)
    reference = make_policy().train()
    loader = ResidentLoader(windows, BatchOrder(len(windows), 8, seed=0), CPU)
    torch.manual_seed(1)
    parts = [reference.loss(loader.load(index)) for index in islice(loader, 2)]
    (sum(parts) / 2).backward()
    assert losses[0, 0].item() == pytest.approx((sum(parts) / 2).item(), rel=1e-5)
    for (name, p), q in zip(policy.named_parameters(), reference.parameters(), strict=True):
        scale = min(1.0, 1 / losses[0, 1].item())
        torch.testing.assert_close(p.grad, q.grad * scale, rtol=1e-3, atol=1e-6, msg=name)


def test_the_step_reads_nothing_back_from_its_device(windows: WindowDataset) -> None:
    """On the meta device, whose tensors hold no values: whatever looks at one raises."""
    meta = torch.device("meta")
    policy = make_policy(device=meta).train()
    optimizer = torch.optim.SGD(policy.parameters(), lr=1e-3)  # meta has no fused AdamW
    order = BatchOrder(len(windows), 8, seed=0)
    loader = ResidentLoader(windows, order, meta)
    step = engines.EagerStep(policy, optimizer, loader.load, 1.0, bf16=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert step([next(iter(loader))]).device == meta
    curious = engines.EagerStep(policy, optimizer, loader.load, 1.0, bf16=False)
    curious.loss = lambda batch: policy.loss(batch) * batch["action"].sum().item()
    with pytest.raises(RuntimeError, match="meta"):  # the check can fail
        curious([next(iter(loader))])


def test_the_compiled_engine_trains_alike(
    windows: WindowDataset, eager: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users compile without the checks of our tests
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="workspace.engine")  # it did not fall back
        compiled, _ = train(windows, "compile")
    torch.testing.assert_close(compiled, eager, **LOSSES_AGREE)


def test_an_engine_that_fails_at_its_start_gives_way_with_a_warning(
    windows: WindowDataset, eager: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: object, **_: object) -> Callable[..., torch.Tensor]:
        def loss(batch: object) -> torch.Tensor:
            torch.randn(3)  # what eager draws afterwards does not depend on it
            raise RuntimeError("no C compiler")

        return loss

    monkeypatch.setattr(torch, "compile", broken)
    told = "workspace.engine=compile failed, continuing with eager: RuntimeError: no C compiler"
    with pytest.warns(UserWarning, match=told):
        fallen, _ = train(windows, "compile")
    torch.testing.assert_close(fallen, eager, rtol=0, atol=0)


def test_what_eager_raises_too_is_raised_once_and_blamed_on_no_engine() -> None:
    def broken(inputs: list) -> torch.Tensor:
        raise ValueError("mat1 and mat2 shapes cannot be multiplied")

    falling_back = engines.FallingBack({"graph": lambda: broken, "eager": lambda: broken}, broken)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="mat1 and mat2") as raised:
            falling_back([])
    assert raised.value.__context__ is None


def test_engines_that_fail_one_after_the_other_are_said_in_one_warning() -> None:
    def works(inputs: list) -> torch.Tensor:
        return torch.zeros(2)

    def fails(inputs: list) -> torch.Tensor:
        raise RuntimeError("no compiler")

    def captures_nothing(inputs: list) -> torch.Tensor:
        raise RuntimeError("no graph")

    steps = {"graph": fails, "graph without a compiler": captures_nothing, "compile": fails, "eager": works}
    falling_back = engines.FallingBack({name: lambda step=step: step for name, step in steps.items()}, works)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(10):
            falling_back([])
    assert [str(warning.message) for warning in said] == [
        "workspace.engine=graph failed, continuing with eager: RuntimeError: no compiler; RuntimeError: no graph"
    ]


class Weights:
    """Stands for a policy: what each run of a process compiles is the same code with other weights."""

    def __init__(self, n: int) -> None:
        self.weight = torch.arange(float(n))

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        return (batch * self.weight).sum()

    def broken_loss(self, batch: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return self.loss(batch)


def step_with(loss: Callable[[torch.Tensor], torch.Tensor]) -> engines.EagerStep:
    """Only its loss is asked for."""
    step = object.__new__(engines.EagerStep)
    step.loss = loss
    return step


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile traces, and its graphs run as they are."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, options, **rest: compile_(f, backend="eager", **rest))


@pytest.mark.usefixtures("uncompiled")
def test_later_runs_of_a_process_compile_as_the_first_did() -> None:
    """torch stops compiling a function, silently, after eight compilations."""
    with torch._dynamo.config.patch(recompile_limit=2):
        for n in range(2, 7):
            weights = Weights(n)
            step = engines.compiled(step_with(weights.loss))
            assert step.loss(torch.ones(n)) == weights.loss(torch.ones(n))


@pytest.mark.usefixtures("uncompiled")
def test_a_loss_that_cannot_be_compiled_whole_is_an_error() -> None:
    step = engines.compiled(step_with(Weights(3).broken_loss))
    with pytest.raises(torch._dynamo.exc.Unsupported):
        step.loss(torch.ones(3))


def test_an_error_later_on_is_not_hidden(windows: WindowDataset) -> None:
    calls = []

    def step(inputs: list) -> torch.Tensor:
        calls.append(inputs)
        if len(calls) > 10:
            raise ArithmeticError("diverged")
        return torch.zeros(2)

    falling_back = engines.FallingBack({"graph": lambda: step, "eager": lambda: step}, step)
    for _ in range(10):
        falling_back([])
    with pytest.raises(ArithmeticError):
        falling_back([])


@pytest.mark.parametrize(("engine", "told"), [("graph", "needs a CUDA device"), ("fast", "expected auto, eager")])
def test_an_engine_that_cannot_run_here_is_refused(engine: str, told: str) -> None:
    with pytest.raises(ValueError, match=rf"workspace.engine={engine}.*{told}"):
        engines.choose(engine, CPU)
    assert engines.choose("auto", CPU) == "eager"
    assert engines.choose("auto", torch.device("cuda")) == "graph"


class ReplayedOnTheCPU:
    """Stands for a CUDA graph where there is no GPU: a replay runs the captured work and fills the captured result."""

    def __init__(self, work: Callable[[], torch.Tensor], result: torch.Tensor) -> None:
        self.work, self.result, self.replays = work, result, 0

    def replay(self) -> None:
        self.replays += 1
        self.result.copy_(self.work())


@pytest.fixture
def capture_shaped(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[ReplayedOnTheCPU]]:
    """What graphs are fed with, and when, needs no GPU to be checked: the graphs captured from now on."""

    def begin(*result_shape: int) -> list[ReplayedOnTheCPU]:
        captured: list[ReplayedOnTheCPU] = []

        def capture(_: object, work: Callable[[], torch.Tensor]) -> tuple[ReplayedOnTheCPU, torch.Tensor]:
            captured.append(ReplayedOnTheCPU(work, torch.empty(result_shape)))  # runs nothing, as a real one
            return captured[-1], captured[-1].result

        monkeypatch.setattr(engines, "capture", capture)
        monkeypatch.setattr(engines, "on_stream", lambda _, work: work())
        monkeypatch.setattr(torch.cuda, "Stream", lambda _: None)
        return captured

    return begin


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("grad_accumulation", [1, 2])
def test_a_graph_step_feeds_its_graph_with_every_input_and_learning_rate(
    windows: WindowDataset, capture_shaped: Callable, streamed: bool, grad_accumulation: int
) -> None:
    captured = capture_shaped(2)
    results = []
    for graph in (False, True):
        policy = make_policy().train()
        optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)  # AdamW takes a tensor for a rate on CUDA only
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        order = BatchOrder(len(windows), 8, seed=0)
        loader = StreamedLoader(windows, order, CPU, 0) if streamed else ResidentLoader(windows, order, CPU)
        step = engines.EagerStep(policy, optimizer, loader.load, 1.0, bf16=False)
        run = engines.GraphStep(step) if graph else step
        rate = optimizer.param_groups[0]["lr"]
        torch.manual_seed(1)
        batches = iter(loader)
        for _ in range(10):
            results.append(run(list(islice(batches, grad_accumulation))))
            schedule.step()
    assert [g.replays for g in captured] == [10 - engines.WARM_UP]
    assert isinstance(rate, torch.Tensor)
    assert optimizer.param_groups[0]["lr"] is rate  # the one that the graph was captured with
    torch.testing.assert_close(torch.stack(results[10:]), torch.stack(results[:10]))


SCHEDULERS = [DDIMScheduler, DDPMScheduler]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_denoising_replays_one_graph_for_all_batches_that_it_holds(capture_shaped: Callable, scheduler: type) -> None:
    captured = {5: capture_shaped(5, 16, 2)}  # before the stream is asked for
    policy = make_policy(scheduler).eval()
    fast = sped_up(policy)
    for number, batch in enumerate((5, 3, 5, 1, 2)):
        if batch == 1:
            captured[1] = capture_shaped(1, 16, 2)  # a single row has its own
        cond = torch.randn(batch, 2, policy.encoder.out_dim, generator=torch.Generator().manual_seed(number))
        generators = [[torch.Generator().manual_seed(i) for i in range(batch)] for _ in range(2)]
        sampled = [p.sample(cond, g) for p, g in zip((policy, fast), generators, strict=True)]
        torch.testing.assert_close(sampled[1], sampled[0])
    steps = 4
    assert {size: [g.replays for g in graphs] for size, graphs in captured.items()} == {5: [4 * steps], 1: [steps]}


def sped_up(policy: DiffusionPolicy) -> DiffusionPolicy:
    """What `speed_up_sampling` makes of it on a GPU."""
    fast = copy.deepcopy(policy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "choose", lambda *_: "graph")
        engines.speed_up_sampling("graph", fast)
    return fast


def test_gradients_through_a_denoiser_are_not_lost_in_a_graph(capture_shaped: Callable) -> None:
    captured = capture_shaped(2, 16, 2)
    policy = make_policy()
    denoiser = engines.GraphDenoiser(policy.denoiser, CPU)
    x = torch.randn(2, 16, 2, requires_grad=True)
    denoiser(x, torch.zeros(2, 1), torch.randn(2, 2, policy.encoder.out_dim)).sum().backward()
    assert x.grad is not None
    assert captured == []


def test_denoising_goes_on_without_a_graph_that_cannot_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: None)
    policy = make_policy().eval()
    fast, cond = sped_up(policy), torch.randn(3, 2, policy.encoder.out_dim)
    with pytest.warns(UserWarning, match="denoising runs without CUDA graphs: "):  # on_stream meets no CUDA here
        sampled = fast.sample(cond, torch.Generator().manual_seed(0))
    torch.testing.assert_close(sampled, policy.sample(cond, torch.Generator().manual_seed(0)))


@needs_cuda
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("grad_accumulation", [1, 2])
def test_graphs_train_like_eager_steps(
    windows: WindowDataset, bf16: bool, grad_accumulation: int, streamed: bool
) -> None:
    cuda = torch.device("cuda")
    options = {"device": cuda, "bf16": bf16, "grad_accumulation": grad_accumulation, "streamed": streamed}
    reference, _ = train(windows, "eager", **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="workspace.engine")
        graph, _ = train(windows, "graph", **options)
    torch.testing.assert_close(graph, reference, **({"rtol": 3e-2, "atol": 3e-3} if bf16 else LOSSES_AGREE))


@needs_cuda
@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_no_step_synchronises(windows: WindowDataset, engine: str) -> None:
    cuda = torch.device("cuda")
    policy = make_policy(device=cuda).train()
    optimizer = torch.optim.AdamW(policy.parameters(), fused=True)
    loader = ResidentLoader(windows, BatchOrder(len(windows), 8, seed=0), cuda)
    step = engines.training_step(engine, engines.EagerStep(policy, optimizer, loader.load, 1.0, bf16=True))
    batches = iter(loader)
    for _ in range(engines.WARM_UP + 2):
        step([next(batches)])
    torch.cuda.set_sync_debug_mode("error")
    try:
        step([next(batches)])
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_cuda
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_graphs_denoise_like_the_loop_and_follow_the_weights(scheduler: type) -> None:
    cuda = torch.device("cuda")
    policy = make_policy(scheduler, cuda).eval()
    fast = copy.deepcopy(policy)
    engines.speed_up_sampling("graph", fast)
    for batch in (1, 8, 1):
        cond = torch.randn(batch, 2, policy.encoder.out_dim, device=cuda)
        generators = [[torch.Generator(cuda).manual_seed(i) for i in range(batch)] for _ in range(2)]
        torch.testing.assert_close(
            fast.sample(cond, generators[0]), policy.sample(cond, generators[1]), rtol=1e-3, atol=1e-3
        )
        with torch.no_grad():
            for p, q in zip(policy.parameters(), fast.parameters(), strict=True):
                p.mul_(0.9)
                q.copy_(p)
