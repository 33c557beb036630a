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
        method: The `finetuning_type` that it needs; elsewhere it is silently ignored or refused.
        names: True for comma-separated module names; a YAML list of names is taken too.
    """

    why: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[Scalar, ...] = ()
    method: str | None = None
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
    """

    context: int
    epochs: float
    layers: int | None = None
    rows: int | None = None
    device: str = "cpu"


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

OPEN: dict[str, Open] = {
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
    "label_smoothing_factor": Open(why="softer targets", low=0, below=1),
    "neftune_noise_alpha": Open(
        why="noise on the embeddings (NEFTune, Jain et al. 2023); 5 to 15 is usual", above=0, high=100
    ),
    "use_dft_loss": Open(why="dynamic fine-tuning loss (Wu et al. 2025): weighs tokens by their probability"),
    "use_eaft_loss": Open(why="entropy-adaptive loss"),
    "eaft_alpha": Open(why="its strength", low=0, high=100),
    # data
    "cutoff_len": Open(why="longest sequence in tokens; what is longer is cut", low=16),
    "packing": Open(why="several rows in one sequence: faster on short rows, but rows see each other"),
    "neat_packing": Open(why="packing whose rows do not see each other"),
    "train_on_prompt": Open(why="learn the prompt too"),
    "mask_history": Open(why="learn the last turn only"),
    "disable_shuffling": Open(why="keep the order of the data"),
    "group_by_length": Open(why="rows of like length together: less padding"),
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
    # LoRA
    "lora_rank": Open(why="size of the adapter", low=1, high=1024, method="lora"),
    "lora_alpha": Open(why="its scale, divided by the rank; unset is twice the rank", low=1, high=8192, method="lora"),
    "lora_dropout": Open(why="dropout inside the adapter", low=0, below=1, method="lora"),
    "lora_target": Open(why="modules with an adapter, or all", names=True, method="lora"),
    "use_rslora": Open(why="scale by the root of the rank (Kalajdzievski 2023); for large ranks", method="lora"),
    "use_dora": Open(why="weight-decomposed LoRA (Liu et al. 2024); slower", method="lora"),
    "loraplus_lr_ratio": Open(
        why="LoRA+ (Hayou et al. 2024): learning rate of B over that of A", above=0, high=1000, method="lora"
    ),
    # freeze
    "freeze_trainable_layers": Open(why="trained layers: n last ones, or -n first ones", method="freeze"),
    "freeze_trainable_modules": Open(why="modules of these layers, or all", names=True, method="freeze"),
    "freeze_extra_modules": Open(why="modules outside the layers to train too", names=True, method="freeze"),
}

CLOSED: tuple[Closed, ...] = (
    Closed(
        "model_name_or_path adapter_name_or_path adapter_folder model_revision cache_dir offload_folder "
        "dataset eval_dataset dataset_dir media_dir tokenized_path output_dir overwrite_output_dir "
        "logging_dir create_new_adapter overwrite_cache data_shared_file_system",
        "the harness owns it: models, data and outputs have fixed places",
    ),
    Closed(
        "save_* resume_from_checkpoint do_train do_eval do_predict predict_with_generate stage run_name "
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
        "use_galore galore_* use_apollo apollo_* use_badam badam_* use_adam_mini quantization_* double_quantization",
        "not available: its package is not installed in the training environment",
    ),
    Closed(
        "pissa_* use_llama_pro oft_* module_dropout additional_target use_asft_loss asft_alpha loraplus_lr_embedding",
        "not offered: what it writes cannot be scored on the plain base model, or it needs a second model",
    ),
    Closed(
        "pref_* dpo_* kto_* simpo_* ppo_* ref_model* reward_model* ld_alpha",
        "it belongs to preference training; this is supervised fine-tuning",
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
