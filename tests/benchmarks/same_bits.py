"""Print digests of a forward pass and of three short trainings, one thread.

Two processors that print the same line give the same tables. ``./run_all.sh`` sets
``ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=AVX2``; measured with it and without on a processor
with AVX2 (AMD EPYC, Zen 3, 27 November 2026, torch 2.13.0)::

    e15a53afb7ac 97c225b3a0c4 6a884d740405 8060a39b34c9

Whether a processor with AVX-512 prints this line with those settings is not known yet.
``MKL_CBWR=COMPATIBLE``, which promises it, took twice the time.
"""

import hashlib

import torch

from cotspec import models
from cotspec.profiles import StudentConfig, resolve


def digest(tensors) -> str:
    """Return twelve hexadecimal digits of tensors' bits."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().numpy().tobytes())
    return found.hexdigest()[:12]


def trained(size: str) -> list[torch.Tensor]:
    """Return a student's weights after five updates on random tokens."""
    model = models.load_student(StudentConfig(model=f"micro-{size}")).model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids, labels = torch.randint(5, 400, (32, 90)), torch.randint(5, 400, (32, 40))
    for _ in range(5):
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return list(model.parameters())


def main() -> None:
    """Print four digests."""
    torch.set_num_threads(1)
    teacher = models.load_teacher(resolve("micro").teacher).model
    torch.manual_seed(0)
    with torch.inference_mode():
        found = [digest([teacher(torch.randint(5, 600, (64, 60))).logits])]
    found += [digest(trained(size)) for size in ("small", "base", "xl")]
    print(*found)


if __name__ == "__main__":
    main()
