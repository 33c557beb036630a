"""Which LLaMA-Factory keys a proposal may set, and why the others are not its to set.

A proposal may set the keys in `OPEN` and nothing else. Every other argument of the pinned LLaMA-Factory is closed;
those that a proposer is likely to reach for are grouped below by reason, so that a refusal can say why.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

import msgspec

from agent.records import Scalar


class Open(msgspec.Struct, frozen=True, kw_only=True):
    """A key that a proposal may set.

    Attributes:
        why: What it is good for, for the prompt and for people.
        low, high: Inclusive bounds of a number. above, below: exclusive ones.
        choices: All allowed values, where LLaMA-Factory would take more or does not check.
        methods: The `finetuning_type`s that it needs; elsewhere it is silently ignored or refused. Empty for any.
        stages: The same for `stage`.
        package: What must be installed where trainings run.
        names: True for comma-separated module names; a YAML list of names is taken too.
    """

    why: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[Scalar, ...] = ()
    methods: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    package: str = ""
    names: bool = False


class Closed(msgspec.Struct, frozen=True):
    """Keys that no proposal sets: names or patterns, who decides instead, and why."""

    patterns: str  # separated by blanks
    reason: str


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """What the model, the data and the device allow.

    Attributes:
        context: The model's context length in tokens. layers: Its hidden layers, where known.
        epochs: Most passes over the data. rows: Training rows, where known.
        device: "cpu" or "cuda": some precisions exist on a GPU only.
        stages: That the data can be trained in (`Prepared.stages`).
        packages: Installed where trainings run, beyond what every training needs.
    """

    context: int
    epochs: float
    layers: int | None = None
    rows: int | None = None
    device: str = "cpu"
    stages: tuple[str, ...] = ("sft",)
    packages: frozenset[str] = frozenset()


METHODS = ("lora", "full", "freeze")
SCHEDULERS = (  # all of transformers' but those that need an evaluation during training
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "warmup_stable_decay",
)
SCHEDULER_OPTIONS: dict[str, tuple[str, ...]] = {  # scheduler -> the numbers that `lr_scheduler_kwargs` may hold
    "cosine": ("num_cycles",),
    "cosine_with_restarts": ("num_cycles",),
    "polynomial": ("lr_end", "power"),
    "inverse_sqrt": ("timescale",),
    "cosine_with_min_lr": ("num_cycles", "min_lr", "min_lr_rate"),
    "warmup_stable_decay": ("min_lr_ratio", "num_cycles"),
}
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")  # need no further package

STAGES = ("sft", "dpo", "kto")
NO_STAGES = {
    "ppo": "LLaMA-Factory's PPO needs TRL 0.9.6 or older, and LLaMA-Factory itself TRL 0.18 or newer: it ends with an "
    "ImportError in every environment; dpo learns from the same data",
    "rm": "it makes a reward model, which answers no question; dpo learns from the same data without one",
    "pt": "pretraining text is not what benchmarks ask; use sft",
}
"""Why LLaMA-Factory's other stages are not to be had."""
LOSSES = ("sigmoid", "orpo", "simpo")
"""Under TRL 0.24, which takes the loss as an argument, LLaMA-Factory 0.9.5 trains the others as sigmoid in silence."""
LORA, FREEZE, OWN = ("lora",), ("freeze",), ("full", "freeze")
SFT, DPO, KTO = ("sft",), ("dpo",), ("kto",)
GALORE, APOLLO, BADAM, ADAM_MINI, QUANTIZED = "galore-torch", "apollo-torch", "badam", "adam-mini", "bitsandbytes"

OPEN: dict[str, Open] = {
    "stage": Open(
        why="sft: imitate the answers (of preferences: the better ones); dpo: prefer chosen to rejected answers, by "
        "pref_loss; kto: learn from answers labelled good or bad",
        choices=STAGES,
    ),
    "finetuning_type": Open(why="what is trained: adapters, every weight, or some layers", choices=METHODS),
    # optimization
    "learning_rate": Open(
        why="the first thing to tune; LoRA wants about ten times that of full tuning", above=0, high=1
    ),
    "num_train_epochs": Open(why="passes over the data; more is slower and may overfit", above=0),
    "per_device_train_batch_size": Open(why="rows a step on each device; bounds memory", low=1, high=1024),
    "gradient_accumulation_steps": Open(
        why="steps summed into one update; larger batches without memory", low=1, high=1024
    ),
    "lr_scheduler_type": Open(why="how the learning rate falls", choices=SCHEDULERS),
    "lr_scheduler_kwargs": Open(why="the scheduler's own numbers, as a JSON object in a string"),
    "warmup_ratio": Open(why="share of the steps with a rising learning rate", low=0, high=1),
    "warmup_steps": Open(why="the same in steps", low=0, high=100_000),
    "weight_decay": Open(why="decay of the weights toward 0", low=0, high=1),
    "optim": Open(why="the optimizer; adafactor and sgd save memory", choices=OPTIMIZERS),
    "use_muon": Open(why="Muon for matrices, AdamW for the rest"),
    "adam_beta1": Open(why="decay of the first moment", low=0, below=1),
    "adam_beta2": Open(why="decay of the second moment; lower for short runs", low=0, below=1),
    "adam_epsilon": Open(why="AdamW's epsilon", above=0, high=1),
    "max_grad_norm": Open(why="gradient clipping; 0 turns it off", low=0, high=1000),
    # loss and regularization
    "label_smoothing_factor": Open(why="softer targets", low=0, below=1, stages=SFT),
    "neftune_noise_alpha": Open(
        why="noise on the embeddings (NEFTune, Jain et al. 2023); 5 to 15 is usual", above=0, high=100
    ),
    "use_dft_loss": Open(
        why="dynamic fine-tuning loss (Wu et al. 2025): weighs tokens by their probability", stages=SFT
    ),
    "use_eaft_loss": Open(why="entropy-adaptive loss", stages=SFT),
    "eaft_alpha": Open(why="its strength", low=0, high=100, stages=SFT),
    # preferences
    "pref_loss": Open(
        why="the loss of stage dpo: sigmoid is DPO (Rafailov et al. 2023); orpo (Hong et al. 2024) and simpo (Meng et "
        "al. 2024) need no reference model, and so less memory and time",
        choices=LOSSES,
        stages=DPO,
    ),
    "pref_beta": Open(
        why="tie to the reference: 0.1 for DPO and KTO, less moves further; SimPO: 2 to 10; ORPO: weight of the odds",
        above=0,
        high=100,
        stages=DPO + KTO,
    ),
    "pref_ftx": Open(why="weight of a supervised loss on the better answers", low=0, high=100, stages=DPO + KTO),
    "pref_bco_weight": Open(
        why="weight of a binary classifier's loss (BCO), with sigmoid", low=0, high=100, stages=DPO
    ),
    "dpo_label_smoothing": Open(
        why="share of pairs that may be the wrong way round (cDPO), with sigmoid", low=0, below=0.5, stages=DPO
    ),
    "ld_alpha": Open(
        why="below 1 weighs what the longer answer has more (LD-DPO): against long answers", low=0, high=1, stages=DPO
    ),
    "simpo_gamma": Open(why="SimPO's margin; 0.5 to 1.6 is usual", low=0, high=100, stages=DPO),
    "kto_chosen_weight": Open(why="weight of good answers; with few of them, more", low=0, high=1000, stages=KTO),
    "kto_rejected_weight": Open(why="weight of bad answers", low=0, high=1000, stages=KTO),
    # data
    "cutoff_len": Open(why="longest sequence in tokens; what is longer is cut", low=16),
    "packing": Open(why="several rows in one sequence: faster on short rows, but rows see each other", stages=SFT),
    "neat_packing": Open(why="packing whose rows do not see each other", stages=SFT),
    "train_on_prompt": Open(why="learn the prompt too", stages=SFT),
    "mask_history": Open(why="learn the last turn only", stages=SFT),
    "disable_shuffling": Open(why="keep the order of the data"),
    "group_by_length": Open(why="rows of like length together: less padding", stages=SFT),
    "dataloader_drop_last": Open(why="drop the last, smaller batch"),
    # memory and precision
    "bf16": Open(why="bfloat16 mixed precision; the default on a GPU"),
    "fp16": Open(why="float16 mixed precision, for GPUs without bfloat16"),
    "pure_bf16": Open(why="bfloat16 weights and optimizer: half the memory, less exact"),
    "tf32": Open(why="TensorFloat-32 matrix products"),
    "disable_gradient_checkpointing": Open(why="faster where memory allows"),
    "use_reentrant_gc": Open(why="reentrant gradient checkpointing"),
    "upcast_layernorm": Open(why="layer norms in float32"),
    "upcast_lmhead_output": Open(why="logits in float32"),
    "flash_attn": Open(why="attention implementation", choices=("auto", "disabled", "sdpa")),
    "quantization_bit": Open(
        why="QLoRA (Dettmers et al. 2023): the base in 4 or 8 bits under the adapter",
        choices=(4, 8),
        methods=LORA,
        package=QUANTIZED,
    ),
    "double_quantization": Open(why="quantize the constants too", methods=LORA, package=QUANTIZED),
    # optimizers that need less memory for training all weights
    "use_galore": Open(why="GaLore (Zhao et al. 2024): gradients projected to a low rank", methods=OWN, package=GALORE),
    "galore_rank": Open(why="that rank", low=1, high=4096, methods=OWN, package=GALORE),
    "galore_update_interval": Open(why="steps between projections", low=1, high=100_000, methods=OWN, package=GALORE),
    "galore_scale": Open(why="its scale", above=0, high=1000, methods=OWN, package=GALORE),
    "use_apollo": Open(
        why="APOLLO (Zhu et al. 2024): a learning rate per channel from a low rank", methods=OWN, package=APOLLO
    ),
    "apollo_rank": Open(why="that rank", low=1, high=4096, methods=OWN, package=APOLLO),
    "apollo_update_interval": Open(why="steps between projections", low=1, high=100_000, methods=OWN, package=APOLLO),
    "apollo_scale": Open(why="its scale", above=0, high=1000, methods=OWN, package=APOLLO),
    "use_badam": Open(why="BAdam (Luo et al. 2024): all weights, one layer at a time", methods=OWN, package=BADAM),
    "badam_switch_interval": Open(why="steps until the next layer", low=1, high=100_000, methods=OWN, package=BADAM),
    "badam_switch_mode": Open(why="which layer is next", methods=OWN, package=BADAM),
    "use_adam_mini": Open(
        why="Adam-mini (Zhang et al. 2024): one second moment a block", methods=OWN, package=ADAM_MINI
    ),
    # LoRA
    "lora_rank": Open(why="size of the adapter", low=1, high=1024, methods=LORA),
    "lora_alpha": Open(why="its scale, divided by the rank; unset is twice the rank", low=1, high=8192, methods=LORA),
    "lora_dropout": Open(why="dropout inside the adapter", low=0, below=1, methods=LORA),
    "lora_target": Open(why="modules with an adapter, or all", names=True, methods=LORA),
    "use_rslora": Open(why="scale by the root of the rank (Kalajdzievski 2023); for large ranks", methods=LORA),
    "use_dora": Open(why="weight-decomposed LoRA (Liu et al. 2024); slower", methods=LORA),
    "loraplus_lr_ratio": Open(
        why="LoRA+ (Hayou et al. 2024): learning rate of B over that of A", above=0, high=1000, methods=LORA
    ),
    # freeze
    "freeze_trainable_layers": Open(why="trained layers: n last ones, or -n first ones", methods=FREEZE),
    "freeze_trainable_modules": Open(why="modules of these layers, or all", names=True, methods=FREEZE),
    "freeze_extra_modules": Open(why="modules outside the layers to train too", names=True, methods=FREEZE),
}

CLOSED: tuple[Closed, ...] = (
    Closed(
        "model_name_or_path adapter_name_or_path adapter_folder model_revision cache_dir offload_folder "
        "dataset eval_dataset dataset_dir media_dir tokenized_path output_dir overwrite_output_dir "
        "logging_dir create_new_adapter overwrite_cache data_shared_file_system",
        "the harness owns it: models, data and outputs have fixed places",
    ),
    Closed(
        "save_* resume_from_checkpoint do_train do_eval do_predict predict_with_generate run_name "
        "plot_loss preprocessing_* dataloader_num_workers dataloader_prefetch_factor streaming buffer_size "
        "disable_tqdm log_* logging_* report_to print_param_status",
        "the harness owns it: it decides how a training is run, saved and reported",
    ),
    Closed(
        "seed data_seed full_determinism",
        "the harness owns it: seeds are chosen for comparability, not for luck",
    ),
    Closed(
        "template default_system enable_thinking preserve_thinking tool_format resize_vocab add_tokens "
        "add_special_tokens init_special_tokens new_special_tokens_config split_special_tokens "
        "train_from_scratch rope_scaling shift_attn mixture_of_depths use_fast_tokenizer",
        "the harness owns it: training and evaluation must see the same model and the same prompt",
    ),
    Closed(
        "max_steps",
        "the harness owns it: set num_train_epochs instead (fractions are allowed)",
    ),
    Closed(
        "max_samples val_size eval_* *_eval_batch_size load_best_model_at_end metric_for_best_model "
        "greater_is_better early_stopping_steps compute_accuracy *full_eval mix_strategy interleave_probs "
        "auto_find_batch_size ignore_data_skip ignore_pad_token_for_loss",
        "the harness owns it: every trial trains on the same rows, and the benchmark alone measures",
    ),
    Closed(
        "do_sample temperature top_p top_k num_beams max_length max_new_tokens repetition_penalty "
        "length_penalty skip_special_tokens generation_*",
        "it concerns answers, not training: the benchmark decides how they are generated",
    ),
    Closed(
        "*_hub_token push_to_hub* hub_* export_* project trackio_space_id use_swanlab swanlab_*",
        "forbidden: a training reaches no hub and no network",
    ),
    Closed(
        "trust_remote_code deepspeed fsdp* accelerator_config parallelism_config *hyper_parallel* use_mca "
        "vllm_* sglang_* infer_* *liger_kernel* use_kt kt_* *torch_profiler profiler_* profile_modules "
        "torch_compile* torchdynamo use_unsloth* use_v1_kernels optim_args gradient_checkpointing_kwargs "
        "restore_callback_states_from_checkpoint",
        "forbidden: it loads code or files from outside the trial, or needs packages that are not installed",
    ),
    Closed(
        "galore_target galore_proj_type galore_layerwise apollo_target apollo_proj* apollo_layerwise apollo_scale_* "
        "badam_mode badam_start_block badam_update_ratio badam_mask_mode badam_verbose quantization_method "
        "quantization_type quantization_device_map",
        "not offered: its default is kept",
    ),
    Closed(
        "pissa_* use_llama_pro oft_* module_dropout additional_target use_asft_loss asft_alpha loraplus_lr_embedding",
        "not offered: what it writes cannot be scored on the plain base model, or it needs a second model",
    ),
    Closed(
        "ref_model* reward_model*",
        "the harness owns it: the untrained model is the reference, and there is no second model",
    ),
    Closed(
        "ppo_*",
        f"it belongs to PPO: {NO_STAGES['ppo']}",
    ),
    Closed(
        "local_rank ddp_* tpu_* mp_parameters ray_* master_* fp8* debug half_precision_backend fp16_backend "
        "fp16_opt_level no_cuda use_cpu use_mps_device past_index per_gpu_*",
        "forbidden: devices and processes are the harness's, or it is deprecated",
    ),
    Closed(
        "gradient_checkpointing",
        "LLaMA-Factory sets it itself: use disable_gradient_checkpointing",
    ),
    Closed(
        "adafactor",
        "deprecated: use optim: adafactor",
    ),
)


def why_closed(key: str) -> str:
    """Why a known key may not be set by a proposal."""
    for group in CLOSED:
        if any(fnmatchcase(key, pattern) for pattern in group.patterns.split()):
            return group.reason
    return "not offered: it does not change how a text model is trained"


def why_unavailable(rule: Open, bounds: Bounds) -> str | None:
    """Why an open key cannot be set where these trainings run, whatever else a recipe says; None if it can."""
    if rule.package and rule.package not in bounds.packages:
        return f"needs the package {rule.package}, which the training environment does not have"
    if rule.package == QUANTIZED and bounds.device != "cuda":
        return "needs a GPU, and this training runs on the CPU"
    return None


def offered(bounds: Bounds) -> dict[str, Open]:
    """The keys that a proposal may set; those of a stage also where only data work of its own would allow that."""
    return {key: rule for key, rule in OPEN.items() if why_unavailable(rule, bounds) is None}
