"""The paper's own setting: CIFAR-10 with DDPM++, a flow, its reflow and a distilled one, judged by FID."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steepest.core.extras import require
from steepest.generative import FlowFit, RectifiedFlow, UNetVelocity, distill, fit_flow, frechet_distance, reflow
from steepest.studies.claim import Claim
from steepest.studies.context import Context, Unavailable

__all__ = ["CLAIMS", "Plan", "run_paper", "train_rounds"]

# fmt: off
CLAIMS = [
    Claim("paper-flow", "CIFAR-10: FID of 50,000 samples of the 1-flow by RK45.", "2.58, NFE 127", "<= 2.7", "FID",
          "paper"),
    Claim("paper-reflow", "CIFAR-10: FID of the 2-flow in one step.", "12.21", "<= 12.5", "FID", "paper"),
    Claim("paper-distilled", "CIFAR-10: FID of the distilled 2-flow in one step.", "4.85", "<= 5.0", "FID", "paper"),
]
# fmt: on


@dataclass(frozen=True)
class Plan:
    """The official configuration for CIFAR-10."""

    steps: int = 800_000
    again: int = 300_000
    pairs: int = 1_000_000
    batch: int = 128
    lr: float = 2e-4
    warmup: int = 5000
    checkpoint_every: int = 5000
    samples: int = 50_000
    solver_batch: int = 500


def run_paper(ctx: Context) -> None:
    """Train, or continue from checkpoints beside the data, and measure."""
    device = ctx.need_cuda()
    folder = ctx.data("path")
    images = _cifar(folder).to(device)
    plan = Plan() if ctx.max_steps is None else replace(Plan(), steps=ctx.max_steps, again=ctx.max_steps)
    network = UNetVelocity(3, 32, width=128, blocks=4, dropout=0.15, seed=ctx.seed).to(device)
    first, second, distilled = train_rounds(images, network, plan, folder / "rectified-flow", ctx.seed)
    features = _inception(device)
    truth = _in_parts(features, images, plan.solver_batch)

    def fid(fit: FlowFit, **solver: Any) -> float:
        generator = torch.Generator(device).manual_seed(ctx.seed + 1)
        parts = []
        for begin in range(0, plan.samples, plan.solver_batch):
            n = min(plan.solver_batch, plan.samples - begin)
            x0 = torch.randn(n, 3, 32, 32, generator=generator, device=device)
            parts.append(features(fit.flow.sample(x0, **solver).x))
        return float(frechet_distance(torch.cat(parts).double(), truth.double()))

    one = {"steps": 1, "method": "euler"}
    ctx.measured("paper-flow", fid(first))
    ctx.measured("paper-reflow", fid(second, **one))
    ctx.measured("paper-distilled", fid(distilled, **one))
    ctx.note("FID from torchvision's Inception-v3, whose features differ slightly from those of published numbers.")


def train_rounds(images: Tensor, network: nn.Module, plan: Plan, folder: Path, seed: int) -> list[FlowFit]:
    """1-flow on flipped images, 2-flow on its pairs, and the 2-flow distilled to one step; each with a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    device = images.device
    generator = torch.Generator(device).manual_seed(seed)

    def noise(n: int, source: torch.Generator) -> Tensor:
        return torch.randn(n, *images.shape[1:], generator=source, device=device)

    def data(n: int, source: torch.Generator) -> Tensor:
        chosen = images[torch.randint(len(images), (n,), generator=source, device=device)]
        flipped = torch.rand(n, 1, 1, 1, generator=source, device=device) < 0.5
        return torch.where(flipped, chosen.flip(-1), chosen)

    common: dict[str, Any] = {
        "batch_size": plan.batch, "lr": plan.lr, "warmup": plan.warmup, "checkpoint_every": plan.checkpoint_every,
        "resume": True, "generator": generator,
    }  # fmt: skip
    flow = RectifiedFlow(network, t_eps=1e-3)
    first = fit_flow(flow, noise, data, n_steps=plan.steps, ema=0.999999, checkpoint=folder / "flow.pt", **common)
    again: dict[str, Any] = {
        "n_pairs": plan.pairs, "pairs_kw": {"batch_size": plan.solver_batch}, "n_steps": plan.again, "ema": 0.9999
    }  # fmt: skip
    second = reflow(first.flow, noise, checkpoint=folder / "reflow.pt", **again, **common)
    distilled = distill(second.flow, noise, checkpoint=folder / "distilled.pt", **again, **common)
    return [first, second, distilled]


def _cifar(folder: Path) -> Tensor:
    """Training images (50000, 3, 32, 32) in [-1, 1]."""
    datasets: Any = require("torchvision.datasets", "data", what="CIFAR-10")
    try:
        images = datasets.CIFAR10(str(folder), train=True, download=False).data
    except RuntimeError as error:
        raise Unavailable(f"CIFAR-10 is not in {folder}: {error}") from None
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def _inception(device: torch.device) -> Callable[[Tensor], Tensor]:
    """Pooled features (n, 2048) of Inception-v3 for images in [-1, 1]."""
    models: Any = require("torchvision.models", "data", what="FID")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = models.inception_v3(weights="IMAGENET1K_V1", transform_input=False).to(device).eval()
    network.fc = nn.Identity()

    @torch.no_grad()
    def features(x: Tensor) -> Tensor:
        large = nn.functional.interpolate(x.clamp(-1, 1), size=(299, 299), mode="bilinear", align_corners=False)
        return torch.as_tensor(network(large))

    return features


def _in_parts(features: Callable[[Tensor], Tensor], images: Tensor, batch: int) -> Tensor:
    return torch.cat([features(part) for part in images.split(batch)])
