"""The recipe: what to train, as one typed, flat Dagster resource.

A launch overrides single fields (`resources: {supervised: {config: {epochs: 5}}}`). Dagster fills what a launch leaves
out from the *class*, not from the bound object (measured: binding `learning_rate=7e-4` and launching `epochs: 5` trains
at the class's rate), so a bound recipe is always a generated subclass that has its values as class defaults: `bind`.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Dict, List, Literal, Mapping, Optional

import dagster as dg
from pydantic import ConfigDict

from kitchen_resources.recipes.blocks import EvaluationConfig, LoraConfig, PromotionRule, RowLimits
from kitchen_resources.recipes.fields import recipe_field

Schedule = Literal["constant", "linear", "cosine", "polynomial", "exponential"]


@dataclass(frozen=True)
class Timetable:
    """When a recipe is launched by itself; off until switched on in the UI."""

    cron: str
    timezone: str = "UTC"


@dataclass(frozen=True)
class RecipeDefinition:
    """What is fixed where a recipe is defined, and can't be overridden by a launch.

    Attributes:
        name: Resource key, job name and asset prefix; matches `[a-z][a-z0-9_]*`.
        workflow: Name of the workflow that runs it, or "" for the one that is named as its method.
        description: What the recipe is for; markdown.
        schedule: When to launch it, or None.
        new_data: How often to look whether its data set has changed, and launch it then, in seconds; None for never.
        promotion: When its model may go to production; None for better than the base by the method's own metric.
        base_from: Recipe whose registered model is the base of this one: NAME, NAME@VERSION or NAME@ALIAS; or "".
        teacher_from: The same for the teacher of a distillation.
        loss: A loss of one's own, `module:function`; "" for the method's. Here, because it is code that runs.
        batch_stages: Stages of an optimiser step of one's own, likewise: get_batch, forward_backward, optim_step.
        upstream_missing: What a launch does when such a recipe has no version yet: refuse, or train it first.
        required_ports: Resources of the location that it needs besides the kitchen's own, by key.
        optional_ports: Resources that it uses where the location has them.
        owners: Dagster owners, `team:x` or a mail address.
        tags: Dagster tags of the job.
        source: File it came from, or "".
    """

    name: str = ""
    workflow: str = ""
    description: str = ""
    schedule: Timetable | None = None
    new_data: float | None = None
    promotion: PromotionRule | None = None
    base_from: str = ""
    teacher_from: str = ""
    loss: str = ""
    batch_stages: Mapping[str, str] = field(default_factory=dict)
    upstream_missing: Literal["refuse", "train"] = "refuse"
    required_ports: tuple[str, ...] = ()
    optional_ports: tuple[str, ...] = ()
    owners: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True)
class Draws:
    """An epoch of a method that samples: not a pass over all rows, but a number of draws from them.

    Attributes:
        prompts: Prompts of one draw.
        count: Draws of an epoch.
        steps_per_draw: Optimiser steps on what was sampled for one draw.
    """

    prompts: int
    count: int
    steps_per_draw: int = 1


class Recipe(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The fields that every method shares.

    Values are typed but not bounded here: `preflight` checks bounds and what goes together, before any work.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    method: ClassVar[str] = ""
    """How it is trained: supervised, preference, reinforcement or distillation."""

    promoted_by: ClassVar[str] = "held_out/loss"
    """Metric of the rule for promotion where the definition has none."""

    definition: ClassVar[RecipeDefinition] = RecipeDefinition()

    @property
    def workflow(self) -> str:
        """Name of the workflow that runs it."""
        return self.definition.workflow or self.method

    # What is trained, and on what.
    model: str = recipe_field(
        "",
        "Base model: a local folder, a hub id (`org/name` or `org/name@revision`), a registered model "
        "(`registry:NAME@3`), or `embedded:tiny`.",
        moves="base",
    )
    chat_template: Optional[str] = recipe_field(
        None,
        "Null for the model's own; a built-in name (chatml, role_colon, llama3); a .jinja file; `none` for raw text.",
        moves="data",
    )
    dataset: str = recipe_field(
        "",
        "A file or folder (JSONL, JSON, CSV, Parquet, Arrow), a hub id (`org/name@revision`, with `#folder` for one of its "
        "parts), or `embedded:NAME`.",
        moves="data",
    )
    split: str = recipe_field("train", "Split to train on, when the data set has several.", moves="data")
    max_rows: Optional[int] = recipe_field(
        None, "Use only the first rows of the data set; null for all.", moves="data", minimum=1
    )
    columns: Dict[str, str] = recipe_field(
        {},
        "Names of your columns: {ours: yours}, such as {prompt: question, completion: answer}.",
        moves="data",
    )
    held_out: str = recipe_field(
        "0.1",
        "Rows kept from training: a share such as 0.1 (0 for none), or a file, folder, hub id, or `split:NAME`.",
        moves="data",
    )
    max_length: int = recipe_field(
        2048, "Longest row in tokens; what is beyond it is cut and reported.", moves="data", minimum=2
    )
    row_limits: RowLimits = recipe_field(
        RowLimits(), "Shares of defective rows at which training is refused.", moves="nothing"
    )

    # How long, and in what steps.
    epochs: int = recipe_field(3, "Passes over the training rows.", moves="weights", minimum=1, maximum=100_000)
    max_steps: Optional[int] = recipe_field(
        None,
        "Stop after this many optimiser steps, if that is sooner; null for no limit.",
        moves="weights",
        minimum=1,
    )
    batch_size: int = recipe_field(8, "Rows (or packs) in one forward pass.", moves="weights", minimum=1)
    gradient_accumulation_steps: int = recipe_field(
        1, "Forward passes whose gradients make one optimiser step.", moves="weights", minimum=1
    )

    # The optimiser.
    optimizer: Literal["adamw", "adamw_fused", "sgd", "adafactor"] = recipe_field(
        "adamw", "Update rule. The fused AdamW is faster on GPUs and gives other bits.", moves="weights"
    )
    learning_rate: float = recipe_field(
        2.0e-5, "Peak learning rate. In YAML write 2.0e-4: 2e-4 is read as text.", moves="weights", minimum=0
    )
    lr_schedule: Schedule = recipe_field("linear", "Shape of the learning rate after warm-up.", moves="weights")
    lr_final: float = recipe_field(
        0.0, "Learning rate at the last step (linear, cosine, polynomial).", moves="weights", minimum=0
    )
    lr_power: float = recipe_field(1.0, "Exponent of the polynomial schedule.", moves="weights", above=0)
    lr_decay_rate: float = recipe_field(
        0.9, "Factor of the exponential schedule, per step.", moves="weights", above=0, maximum=1
    )
    lr_cycles: float = recipe_field(
        0.5, "Waves of the cosine schedule; 0.5 is one descent.", moves="weights", above=0
    )
    warmup_ratio: Optional[float] = recipe_field(
        None,
        "Share of all steps over which the learning rate rises from 0.",
        moves="weights",
        minimum=0,
        below=1,
    )
    warmup_steps: Optional[int] = recipe_field(
        None,
        "Steps over which the learning rate rises from 0; instead of `warmup_ratio`.",
        moves="weights",
        minimum=0,
    )
    weight_decay: float = recipe_field(0.0, "Decoupled weight decay.", moves="weights", minimum=0)
    adam_beta1: float = recipe_field(0.9, "Decay of the first moment.", moves="weights", minimum=0, below=1)
    adam_beta2: float = recipe_field(0.999, "Decay of the second moment.", moves="weights", minimum=0, below=1)
    adam_eps: float = recipe_field(1.0e-8, "Added to the root of the second moment.", moves="weights", above=0)
    max_grad_norm: float = recipe_field(
        1.0, "Gradients are scaled down to this norm; 0 for never.", moves="weights", minimum=0
    )

    # The model in memory.
    lora: Optional[LoraConfig] = recipe_field(
        None, "Low-rank adaptation; null for full fine-tuning.", moves="weights"
    )
    quantization: Literal["none", "8bit", "4bit"] = recipe_field(
        "none",
        "Load the frozen base in fewer bits (LoRA only; needs the `quantization` extra).",
        moves="weights",
    )
    precision: Literal["auto", "fp32", "bf16"] = recipe_field(
        "auto", "Arithmetic: auto is bf16 on a GPU that has it, else fp32.", moves="weights"
    )
    gradient_checkpointing: bool = recipe_field(
        False,
        "Recompute activations in the backward pass: less memory, about a third slower.",
        moves="weights",
    )
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3"] = recipe_field(
        "auto", "Attention kernel: auto is sdpa where the model has it, else eager.", moves="weights"
    )
    seed: int = recipe_field(
        0, "Seed of initialisation, dropout, order and split.", moves="weights", minimum=0, maximum=2**31
    )
    deterministic: bool = recipe_field(
        False,
        "On GPUs: deterministic kernels and eager attention, slower. CPU fp32 always is.",
        moves="weights",
    )
    trainer_args: Dict[str, Any] = recipe_field(
        {}, "Further arguments of the TRL config class, checked against it.", moves="weights"
    )

    # Checkpoints, evaluation, selection.
    checkpoint_steps: Optional[int] = recipe_field(
        None,
        "Also save every so many optimiser steps; every epoch's end is always saved.",
        moves="nothing",
        minimum=1,
    )
    checkpoint_minutes: Optional[float] = recipe_field(
        None, "Also save every so many minutes.", moves="nothing", above=0
    )
    keep_last: int = recipe_field(2, "Newest checkpoints kept whole.", moves="nothing", minimum=1)
    keep_best: int = recipe_field(1, "Best checkpoints by `select_metric` kept whole.", moves="nothing", minimum=0)
    eval_every: int = recipe_field(
        1, "Evaluate after every so many epochs; 0 for only the final model.", moves="nothing", minimum=0
    )
    evaluations: List[EvaluationConfig] = recipe_field(
        [], "Evaluations beyond the loss on held-out rows.", moves="nothing"
    )
    select: Literal["last", "best"] = recipe_field("last", "Which epoch becomes the model.", moves="nothing")
    select_metric: str = recipe_field(
        "held_out/loss",
        "Metric of `select`, `keep_best` and early stopping: `<evaluation>/<metric>`.",
        moves="nothing",
    )
    early_stop_patience: Optional[int] = recipe_field(
        None,
        "Stop after this many evaluations without a better `select_metric`; null for never.",
        moves="nothing",
        minimum=1,
    )
    export: Literal["merged", "adapter", "both"] = recipe_field(
        "merged",
        "What the model folder holds: the merged weights, the LoRA adapter, or both.",
        moves="nothing",
    )

    # Going on.
    continue_from: Optional[str] = recipe_field(
        None,
        "Start from a stored checkpoint: a fingerprint's first digits, with @STEP for one of its checkpoints; or latest.",
        moves="base",
    )
    carry: Literal["all", "weights"] = recipe_field(
        "all",
        "With `continue_from`: go on with the optimiser's state too, or only with the weights.",
        moves="base",
    )
    on_drift: Literal["warn", "refuse"] = recipe_field(
        "warn",
        "When a run resumes on other library versions or another CPU: go on and say so, or refuse.",
        moves="nothing",
    )
    lease_wait_s: float = recipe_field(
        86_400.0, "Seconds to wait while another process trains the same recipe.", moves="nothing", minimum=0
    )

    def draws(self, rows: int) -> Draws | None:
        """What an epoch is where it isn't a pass over the rows; None where it is."""
        return None

    def unread(self) -> frozenset[str]:
        """Fields of the method that have no effect, given the others."""
        return frozenset()

    def resolved(self) -> dict[str, Any]:
        """Fields of the method whose null means the value of another one, with that value."""
        return {}

    def companions(self) -> dict[str, tuple[str, str]]:
        """Models that training reads besides the base: role -> how it is named, and the recipe that it comes from."""
        return {}

    @property
    def promotion(self) -> PromotionRule:
        """When its model may go to production."""
        return self.definition.promotion or PromotionRule(metric=self.promoted_by)
