"""Plain TRL scripts: nothing of the kitchen, only the prepared Parquet and arguments written by hand.

Reads paths of JSON files from standard input, a line each, with {method, model, parquet, output, arguments, lora, threads}
and what the method needs besides, and answers each with a line: its exit status. Each is trained in a process of its own,
which is forked when the libraries are imported and nothing else has been done.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import (
    DistillationConfig,
    DistillationTrainer,
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    SFTConfig,
    SFTTrainer,
)

COMMON: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "activation_checkpointing": False,
    "save_strategy": "no",
    "report_to": "none",
}


def train(given: dict[str, Any]) -> None:
    torch.set_num_threads(given["threads"])
    rows = Dataset.from_parquet(given["parquet"], cache_dir=given["output"] + "-cache")
    trainer = METHODS[given["method"]](given, rows)
    trainer.train()
    trainer.model.save_pretrained(given["output"])


def common(given: dict[str, Any]) -> dict[str, Any]:
    """What every trainer gets: the base by its path, so that TRL itself makes a reference of it."""
    lora = LoraConfig(**given["lora"]) if given["lora"] else None
    return {"model": given["model"], "peft_config": lora}


def settings(given: dict[str, Any]) -> dict[str, Any]:
    return {"output_dir": given["output"] + "-trainer", **COMMON, **given["arguments"]}


def supervised(given: dict[str, Any], rows: Dataset) -> SFTTrainer:
    arguments = SFTConfig(**settings(given), dataset_kwargs={"skip_prepare_dataset": True}, max_length=None)
    return SFTTrainer(**common(given), args=arguments, train_dataset=rows)


def preference(given: dict[str, Any], rows: Dataset) -> DPOTrainer:
    """On the prepared tokens: by itself TRL would also train the line end that this template writes after an answer."""

    class OnTokens(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Dataset, *others: Any) -> Dataset:
            return dataset

    reference = given.get("reference")
    return OnTokens(
        **common(given),
        args=DPOConfig(**settings(given), max_length=None),
        train_dataset=rows.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"]),
        ref_model=AutoModelForCausalLM.from_pretrained(reference) if reference else None,
    )


class Blocks(torch.utils.data.Sampler[int]):
    """Prompts of an epoch: the next ones of an endless sequence of permutations, each draw handed out several times."""

    def __init__(self, rows: int, seed: int, prompts: int, draws: int, group: int, times: int) -> None:
        self.rows, self.seed, self.prompts, self.draws, self.group, self.times = (
            rows,
            seed,
            prompts,
            draws,
            group,
            times,
        )
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.prompts * self.draws * self.group * self.times

    def __iter__(self) -> Iterator[int]:
        def endless() -> Iterator[int]:
            seed = self.seed
            while True:
                yield from torch.randperm(self.rows, generator=torch.Generator().manual_seed(seed)).tolist()
                seed += 1

        sequence = endless()
        for _ in range(self.epoch * self.prompts * self.draws):
            next(sequence)
        for _ in range(self.draws):
            draw = [next(sequence) for _ in range(self.prompts)]
            for _ in range(self.times):
                for index in draw:
                    yield from [index] * self.group


def with_blocks(trainer_class: type, blocks: dict[str, int]) -> type:
    """The trainer with TRL's sampler replaced: TRL's own draws the first epoch's prompts again in each new process."""

    class WithBlocks(trainer_class):  # type: ignore[misc, valid-type]
        def _get_train_sampler(self, dataset: Any = None) -> Blocks:
            return Blocks(len(self.train_dataset), **blocks)

    return WithBlocks


def reinforcement(given: dict[str, Any], rows: Dataset) -> GRPOTrainer:
    """One turn: TRL samples by itself. Several: a rollout function that plays the little game of `tests/letters.py`."""
    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    prompts = [tokenizer.decode(ids) for ids in rows["prompt_ids"]]
    data = Dataset.from_dict({"prompt": prompts})
    turns = given["turns"]

    def one_turn(completions: list[str], **others: Any) -> list[float]:
        return [letters(text) for text in completions]

    def played(played_reward: list[float], **others: Any) -> list[float]:
        return played_reward

    def play(texts: list[str], trainer: GRPOTrainer) -> dict[str, Any]:
        start = [tokenizer(text)["input_ids"] for text in texts]
        said: list[list[int]] = [[] for _ in texts]
        mask: list[list[int]] = [[] for _ in texts]
        rewards = [0.0] * len(texts)
        end = tokenizer.eos_token_id
        for turn in range(turns):
            asked = [a + b for a, b in zip(start, said, strict=True)]
            answers, _ = trainer._generate_single_turn(asked, None, {}, trainer.num_generations)
            for index, answer in enumerate(answers):
                said[index] += answer
                mask[index] += [1] * len(answer)
                ended = answer[-1] == end
                text = tokenizer.decode(answer[:-1] if ended else answer, skip_special_tokens=True)
                rewards[index] += letters(text)
                if turn + 1 < turns:
                    after = f"\n<|im_start|>user\n{len(text)}<|im_end|>\n<|im_start|>assistant\n"
                    read = tokenizer(after if ended else f"<|im_end|>{after}")["input_ids"]
                    said[index] += read
                    mask[index] += [0] * len(read)
        return {
            "prompt_ids": start,
            "completion_ids": said,
            "logprobs": None,
            "env_mask": mask,
            "played_reward": rewards,
        }

    return with_blocks(GRPOTrainer, given["blocks"])(
        **common(given),
        args=GRPOConfig(**settings(given)),
        train_dataset=data,
        reward_funcs=one_turn if turns == 1 else played,
        rollout_func=None if turns == 1 else play,
    )


def letters(text: str) -> float:
    """How far a text is of small letters."""
    return sum("a" <= character <= "z" for character in text) / max(len(text), 1)


def logits(given: dict[str, Any], rows: Dataset) -> SFTTrainer:
    teacher = AutoModelForCausalLM.from_pretrained(given["teacher"]).eval()
    alpha, hot = given["alpha"], given["temperature"]

    class FromLogits(SFTTrainer):  # type: ignore[misc]
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            labels = inputs.pop("labels")[:, 1:]
            mask = labels != -100
            with torch.no_grad():
                wanted = teacher(**inputs, use_cache=False).logits[:, :-1][mask]
            own = model(**inputs, use_cache=False).logits[:, :-1][mask]
            kl = functional.kl_div(
                functional.log_softmax(own / hot, -1),
                functional.log_softmax(wanted / hot, -1),
                log_target=True,
                reduction="sum",
            )
            ce = functional.cross_entropy(own, labels[mask], reduction="sum")
            return (alpha * hot * hot * kl + (1 - alpha) * ce) / num_items_in_batch

    arguments = SFTConfig(**settings(given), dataset_kwargs={"skip_prepare_dataset": True}, max_length=None)
    return FromLogits(**common(given), args=arguments, train_dataset=rows)


def on_policy(given: dict[str, Any], rows: Dataset) -> DistillationTrainer:
    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    data = Dataset.from_dict({"prompt": [tokenizer.decode(ids) for ids in rows["prompt_ids"]]})
    return with_blocks(DistillationTrainer, given["blocks"])(
        **common(given),
        teacher_model=AutoModelForCausalLM.from_pretrained(given["teacher"]),
        args=DistillationConfig(**settings(given)),
        train_dataset=data,
    )


METHODS: dict[str, Callable[[dict[str, Any], Dataset], Any]] = {
    "supervised": supervised,
    "preference": preference,
    "reinforcement": reinforcement,
    "logits": logits,
    "on_policy": on_policy,
}

# What the libraries print is no answer.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        train(json.loads(Path(line.strip()).read_text()))
        sys.exit()
    print(os.waitpid(child, 0)[1], file=answers, flush=True)
