"""Print digests of a forward pass, three short trainings and 200 samples, one thread.

Two processors that print the same line give the same tables, as far as these five
reach. Measured with torch 2.13.0 on a processor with AVX2 and no more (AMD EPYC, Zen 3,
27 November 2026); first as ``./run_all.sh`` sets it, ``ATEN_CPU_CAPABILITY=avx2
MKL_CBWR=AVX2``, then with neither, then with ``MKL_CBWR=COMPATIBLE``::

    e15a53afb7ac 97c225b3a0c4 6a884d740405 8060a39b34c9 7afab753e3b4
    e15a53afb7ac 97c225b3a0c4 6a884d740405 8060a39b34c9 45624b44a69b
    3f350e89d02f 20158307ba23 fdfe1482b751 8d6d2a60c63e 42fb52da3182

So ``MKL_CBWR`` changes the teacher's samples even here: figures compare only between
runs of ``./run_all.sh``. A processor with AVX-512 (AMD EPYC, Zen 4, 28 November 2026)
prints the first line with the settings, digest by digest, and without them another::

    7d795704ac3b 1d5638899c07 fe2b5bc7df58 35cb92f7d16c d7647c73a1d9

``COMPATIBLE`` is not needed, then; it took twice the time.
"""

import hashlib

import torch

from cotspec import models
from cotspec.profiles import StudentConfig, resolve
from cotspec.teacher import huggingface, traces


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


def sampled(teacher: models.Teacher) -> list[torch.Tensor]:
    """Return the log-probabilities of 200 texts, drawn by notebook 01's sampler."""
    head = "Q: Ann has 3 pens. A: The answer is 3. " * 4
    questions = [f"Tom has {n} pens and buys {n + 2}." for n in range(40)]
    requests = [
        traces.Request(str(n), question, f"{head}Q: {question} A:")
        for n, question in enumerate(questions)
    ]
    options = traces.SamplingOptions(5, 1.0, seed=0)
    backend = huggingface.HuggingFaceBackend(teacher, max_new_tokens=40)
    missing = {n: set(range(options.num_samples)) for n in range(len(requests))}
    batches = backend.complete(requests, options, missing)
    done = [sample for batch in batches for sample in batch]
    return [torch.tensor(one.token_logprobs) for *_, one in done]


def main() -> None:
    """Print five digests."""
    torch.set_num_threads(1)
    teacher = models.load_teacher(resolve("micro").teacher)
    torch.manual_seed(0)
    with torch.inference_mode():
        found = [digest([teacher.model(torch.randint(5, 600, (64, 60))).logits])]
    found += [digest(trained(size)) for size in ("small", "base", "xl")]
    print(*found, digest(sampled(teacher)))


if __name__ == "__main__":
    main()
