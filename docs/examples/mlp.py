"""zoft with any module: meta-train a tuner for a plain MLP, then fine-tune with it, forward passes alone.

MeZO needs a learning rate for every task; the tuner recommends one, which runs on its own tasks found. Every run
has the same number of forward passes, and a rate that falls to 0.

Run it with: python docs/examples/mlp.py
"""

import sys

import torch
from torch import nn
from torch.optim.lr_scheduler import LinearLR

import zoft
from meta_train import MetaTrainConfig
from zoft.tasks.function import FunctionTask

Batch = tuple[torch.Tensor, torch.Tensor]


def make_model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))


def make_task(seed: int, count: int = 40, size: int = 16) -> FunctionTask:
    """A random direction to regress on: every seed is another task of the same family."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(8, 1, generator=generator) / 2
    inputs = torch.randn(count, size, 8, generator=generator)
    return FunctionTask(f"direction-{seed}", [(x, torch.tanh(x @ direction)) for x in inputs], loss, losses=losses)


def losses(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Of every example: the tuner's step size goes by them."""
    inputs, targets = batch
    return (model(inputs) - targets).square().mean(1)


def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    return losses(model, batch).mean()


def fine_tune(model: nn.Module, task: FunctionTask, forwards: int, **method) -> float:
    """The task's loss after so many forward passes; the model is put back."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = zoft.ZerothOrder(model, **method)
    steps = optimizer.method.steps_within(forwards)
    schedule = LinearLR(optimizer, 1.0, 0.0, steps)
    batches = task.train_batches(batch_size=16, seed=0)
    for _ in range(steps):
        batch = next(batches)
        optimizer.step(lambda batch=batch: losses(model, batch))
        schedule.step()
    result = task.evaluate(model)["loss"]
    model.load_state_dict(before)
    return result


def main(steps: int = 300, forwards: int = 600, rate_seeds: int = 1) -> dict[str, float]:
    model = make_model()
    config = MetaTrainConfig(steps=steps, restart_every=100, rate_seeds=rate_seeds)
    tuner = zoft.meta_train(model, [make_task(seed) for seed in (1, 2, 3)], config)

    unseen = make_task(9)
    results = {"before": unseen.evaluate(model)["loss"]}
    for lr in (0.0025, 0.005, 0.01, 0.02):
        results[f"mezo, lr {lr:g}"] = fine_tune(model, unseen, forwards, method="mezo", lr=lr)
    recommended = tuner.config.recommended
    learned = {"method": "zo-finetuner", "tuner": tuner.bind(model), "lr": recommended.lr, **recommended.estimate}
    results[f"tuner, lr {recommended.lr:g}"] = fine_tune(model, unseen, forwards, **learned)
    for name, value in results.items():
        print(f"{name:>16}: loss {value:.4f}")
    return results


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
