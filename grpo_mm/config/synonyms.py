"""Words of other tool kits for what a config sets here: names of TRL, transformers, peft, diffusers, kohya, verl and ms-swift."""

from __future__ import annotations

import re

BATCH = (
    "derived: prompts_per_step × group_size samples a step, updates.count optimiser updates; policy.micro_batch is the size of "
    "one forward (memory and speed, not the gradient)"
)
FRACTION = "optim.warmup_updates, in optimiser updates"
SYNONYMS: dict[str, str] = {
    # samples of a prompt
    **dict.fromkeys(
        ("num_generations", "num_return_sequences", "rollout_n", "n", "num_samples", "num_images_per_prompt",
         "num_image_per_prompt", "num_rollouts", "samples_per_prompt", "group", "k", "n_samples_per_prompt"),
        "group_size",
    ),
    # files
    **dict.fromkeys(("base", "_base_", "base_config", "extends", "defaults", "include", "parent"), "inherit, the name of one config file"),
    # batches and length of a run
    **dict.fromkeys(
        ("per_device_train_batch_size", "train_batch_size", "batch_size", "gradient_accumulation_steps", "ppo_mini_batch_size",
         "generation_batch_size", "steps_per_generation", "global_batch_size", "effective_batch_size", "sample_batch_size"),
        BATCH,
    ),
    **dict.fromkeys(("ppo_micro_batch_size_per_gpu", "ppo_micro_batch_size", "micro_batch_size", "mini_batch_size"), "policy.micro_batch"),
    "ppo_max_token_len_per_gpu": "policy.micro_batch_tokens",
    "per_device_eval_batch_size": "engine.rollout_batch for pictures; of answers the engine's generator decides",
    **dict.fromkeys(("num_train_epochs", "epochs", "num_epochs", "total_epochs", "max_train_epochs"),
                    "steps: an epoch is number of prompts / prompts_per_step of them"),
    **dict.fromkeys(("max_steps", "max_train_steps", "total_training_steps", "total_steps", "num_steps", "train_steps"), "steps"),
    **dict.fromkeys(("num_iterations", "ppo_epochs", "num_ppo_epochs", "num_inner_epochs", "mu"), "updates.passes"),
    "num_mini_batches": "updates.count",
    # optimiser
    **dict.fromkeys(("learning_rate", "lr", "unet_lr", "actor_lr", "peak_lr", "base_lr"), "optim.lr"),
    **dict.fromkeys(("warmup_steps", "lr_warmup_steps", "num_warmup_steps"), "optim.warmup_updates"),
    **dict.fromkeys(("warmup_ratio", "lr_warmup_steps_ratio"), FRACTION),
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler", "scheduler", "warmup_style"), "optim.schedule (constant, linear or cosine)"),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), "optim.betas, both as [0.9, 0.999]"),
    **dict.fromkeys(("adam_epsilon", "adam_eps"), "optim.eps"),
    **dict.fromkeys(("weight_decay", "adam_weight_decay"), "optim.weight_decay"),
    **dict.fromkeys(("max_grad_norm", "grad_clip", "clip_grad_norm", "gradient_clipping"), "optim.max_grad_norm"),
    **dict.fromkeys(("optim_type", "optimizer", "optimizer_type"), "optim; it is always AdamW"),
    # adapters
    **dict.fromkeys(("r", "lora_r", "lora_rank", "network_dim", "rank", "lora_dim"), "policy.lora.rank"),
    **dict.fromkeys(("lora_alpha", "network_alpha", "alpha"), "policy.lora.alpha"),
    **dict.fromkeys(("target_modules", "lora_target_modules", "lora_target"), "policy.lora.targets"),
    **dict.fromkeys(("lora", "use_lora", "use_peft", "peft_config", "lora_config", "network_module", "train_type", "tuner_type"),
                    "policy.lora, e.g. policy: {lora: {rank: 16, alpha: 32}}"),
    "init_lora_weights": "policy.lora.init",
    **dict.fromkeys(("lora_dropout", "network_dropout", "dropout"),
                    "nothing: with dropout the log-probabilities of sampling and training would differ"),
    **dict.fromkeys(("network_weights", "adapter_name_or_path", "adapters", "lora_path", "resume_lora"), "policy.lora.start_from"),
    **dict.fromkeys(("freeze_vit", "freeze_vision_tower"), "policy.train_tower, and the other way round"),
    # model and precision
    **dict.fromkeys(("model_name_or_path", "pretrained_model_name_or_path", "model_path", "model_id", "model", "model_name"),
                    "policy.path for vision-language models, policy.model.path for flow models"),
    **dict.fromkeys(("bf16", "fp16", "mixed_precision", "torch_dtype", "precision", "model_dtype"), "policy.dtype (float32 or bfloat16)"),
    **dict.fromkeys(("attn_implementation", "attn_impl", "attn_type"), "policy.attention"),
    **dict.fromkeys(("gradient_checkpointing", "enable_gradient_checkpointing"), "policy.gradient_checkpointing"),
    **dict.fromkeys(("use_ema", "ema_decay"), "ema, e.g. ema: {decay: 0.99}"),
    "load_in_4bit": "not here: weights are float32 or bfloat16",
    "load_in_8bit": "not here: weights are float32 or bfloat16",
    # objective
    **dict.fromkeys(("beta", "kl_coef", "kl_loss_coef", "kl_beta", "kl_weight", "init_kl_coef"),
                    "the weight of the objective {kind: kl, form: k3, weight: 0.04}"),
    **dict.fromkeys(("epsilon", "clip_range", "cliprange", "clip_ratio", "clip_eps", "clip_param"),
                    "clip_low and clip_high of the objective {kind: clipped_ratio, …}"),
    **dict.fromkeys(("epsilon_high", "clip_ratio_high"), "clip_high of the objective {kind: clipped_ratio, …}"),
    **dict.fromkeys(("clip_ratio_low", "epsilon_low"), "clip_low of the objective {kind: clipped_ratio, …}"),
    "delta": "ratio_cap of the objective {kind: clipped_ratio, …}",
    **dict.fromkeys(("clip_ratio_c", "dual_clip"), "dual_clip of the objective {kind: clipped_ratio, …}"),
    **dict.fromkeys(("loss_type", "loss_agg_mode"), "aggregate of the objective {kind: clipped_ratio, …}, or method: dr_grpo, bnpo, dapo"),
    "importance_sampling_level": "ratio of the objective {kind: clipped_ratio, …}: action for tokens, row for sequences",
    **dict.fromkeys(("scale_rewards", "norm_adv_by_std_in_grpo"), "scale of the stage {kind: group_norm, scale: std | none}"),
    **dict.fromkeys(("adv_estimator", "advantage_estimator", "algorithm", "rlhf_type"), "method, or the stages under advantage"),
    "adv_clip_max": "limit of the stage {kind: clamp, limit: 5}",
    **dict.fromkeys(("mask_truncated_completions", "overlong_filter"), "a stage of advantage (`grpo-mm methods --kind advantage`)"),
    **dict.fromkeys(("dynamic_sample", "filter_groups"), "collector: {kind: dynamic_sampling}"),
    **dict.fromkeys(("sync_ref_model", "ref_model_sync_steps"), "reference_reset"),
    "top_entropy_quantile": "the objective {kind: top_entropy, …}",
    # answers
    **dict.fromkeys(("max_completion_length", "max_response_length", "max_tokens", "max_length", "response_length"), "engine.max_new_tokens"),
    **dict.fromkeys(("max_prompt_length", "max_model_len"), "policy.chat.max_prompt_tokens"),
    **dict.fromkeys(("system", "system_prompt"), "policy.chat.system"),
    "temperature": "policy.temperature; of held-out evaluation engine.eval_temperature",
    "top_p": "engine.top_p",
    **dict.fromkeys(("max_pixels", "min_pixels", "image_max_pixels", "image_min_pixels"), "policy.image_pixels, both as [least, most]"),
    **dict.fromkeys(("video_max_pixels", "video_min_pixels"), "policy.video_pixels, both as [least, most]"),
    **dict.fromkeys(("fps", "fps_max_frames", "nframes", "num_frames"), "policy.media.sampling"),
    "use_vllm": "not here: the engine's generator draws",
    # pictures
    **dict.fromkeys(("resolution", "image_size", "size"), "policy.height and policy.width"),
    **dict.fromkeys(("height", "width"), "policy.height and policy.width"),
    **dict.fromkeys(("guidance_scale", "cfg_scale", "cfg", "true_cfg_scale"), "policy.guidance"),
    **dict.fromkeys(("num_inference_steps", "sample_steps", "sampling_steps", "num_sampling_steps"),
                    "engine.steps in training, engine.eval_steps in evaluation"),
    **dict.fromkeys(("noise_level", "eta", "sde_eta"), "level of engine.noise, e.g. {kind: all, level: 0.7}"),
    **dict.fromkeys(("sde_window_size", "sde_window_range"), "size and within of engine.noise {kind: window, …}"),
    **dict.fromkeys(("shift", "discrete_flow_shift", "flow_shift", "timestep_shift"), "engine.schedule, e.g. {kind: shifted, shift: 3.0}"),
    **dict.fromkeys(("timestep_fraction", "train_timestep_fraction"), "engine.train_fraction"),
    "max_sequence_length": "policy.text_length",
    "vae_batch_size": "policy.decode_batch",
    # data and rewards
    **dict.fromkeys(("train_dataset", "dataset", "dataset_name", "train_files", "train_data_dir", "data_path", "data_files"),
                    "prompts, e.g. prompts: {mine: {use: {kind: file, path: train.jsonl}}}"),
    **dict.fromkeys(("eval_dataset", "val_dataset", "val_files", "validation_files"), "eval_prompts, of the same form as prompts"),
    **dict.fromkeys(("reward_funcs", "reward_fn", "reward", "reward_model", "reward_functions", "custom_reward_function"),
                    "rewards, e.g. rewards: {mine: {use: my_rewards:reward}}"),
    **dict.fromkeys(("reward_weights", "reward_weight"), "the weight of each of rewards"),
    # evaluation, checkpoints, logs
    **dict.fromkeys(("eval_steps", "eval_freq", "test_freq", "eval_every", "validation_steps"), "evaluation.every"),
    **dict.fromkeys(("save_steps", "save_freq", "checkpointing_steps", "save_every_n_steps", "save_strategy"), "checkpoints.every"),
    **dict.fromkeys(("save_total_limit", "checkpoints_total_limit", "max_actor_ckpt_to_keep"), "checkpoints.keep_last"),
    "load_best_model_at_end": "checkpoints.keep_best",
    **dict.fromkeys(("early_stopping_patience", "patience"), "evaluation.patience"),
    **dict.fromkeys(("output_dir", "default_local_dir", "logging_dir", "save_dir"), "runs_dir (the run goes into runs_dir/name)"),
    **dict.fromkeys(("run_name", "experiment_name", "output_name", "exp_name"), "name"),
    **dict.fromkeys(("report_to", "logger", "log_with", "loggers", "use_wandb"), "trackers (tensorboard, wandb)"),
    **dict.fromkeys(("log_completions", "logging_steps", "log_every"), "samples_every; metrics are written at every step"),
    **dict.fromkeys(("data_seed", "random_seed"), "seed"),
    **dict.fromkeys(("resume_from_checkpoint", "resume"), "nothing: the same command goes on where the run stopped; --checkpoint names another step"),
    **dict.fromkeys(("deepspeed", "fsdp", "fsdp2", "fsdp_config", "zero_stage", "zero"),
                    "distributed.kind=sharded, with one of configs/accelerate/"),
    **dict.fromkeys(("num_processes", "n_gpus_per_node", "nproc_per_node"),
                    "nothing in the config: `accelerate launch --config_file …` (`grpo-mm configs accelerate/ddp` prints one)"),
}  # fmt: skip
"""Name there -> what it is here."""


def here_it_is(name: str) -> str | None:
    """ "here it is group_size" for the name of another tool kit, in any spelling of case, dashes and dots; None for others."""
    words = re.sub(r"[-\s]+", "_", name.strip().lstrip("-")).lower()
    found = SYNONYMS.get(words) or SYNONYMS.get(words.rpartition(".")[2])
    return None if found is None else f"here it is {found}"
