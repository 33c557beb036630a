"""Makes the demo's base model from nothing: a tiny, untrained Qwen2 with a ChatML tokenizer of its own.

    python make_demo_model.py DIRECTORY

No download, about 5 s on one core. The same bytes on each run: weights from one fixed seed, tokenizer from the fixed
text below. It is made in the training environment because a tokenizer that another major version of transformers
saved may not load there.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

SEED = 20250101  # of the random weights; any other gives as good a model

# Common words become one token, all else falls back to bytes: any text can be tokenized.
TEXT = """
system user assistant the a an and or of to in is it that this for with as on are be by at from you your we our they
question answer problem solution result number numbers digit digits word words letter letters line first last next
reverse sort copy count add subtract multiply divide compute write find how many much what which who when where why
Reverse Sort Copy Count Add Write Find How What Which Who When Where Why The If There Each Question Answer
one two three four five six seven eight nine ten hundred thousand more less than total each every all some left
"""
END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = [END_OF_TEXT, TURN_START, TURN_END, "<think>", "</think>"]
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CONTEXT = 1024  # tokens


def make_tokenizer() -> Any:
    """Byte-level BPE in which every digit is a token of its own, as `PreTrainedTokenizerFast`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,  # an upper bound: the text has fewer merges to give
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # Each word also as it stands inside a sentence, where a space belongs to its token.
    bpe.train_from_iterator([piece for word in TEXT.split() for piece in (word, " " + word)], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START],
        model_input_names=["input_ids", "attention_mask"],  # TRL's GRPO fails on token_type_ids
        model_max_length=CONTEXT,
        padding_side="left",
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def make_model(tokenizer: Any) -> Any:
    """A `Qwen2ForCausalLM` of about 0.7 million random weights, hidden size 128, 4 layers, tied embeddings."""
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    pad, end = tokenizer.convert_tokens_to_ids([END_OF_TEXT, TURN_END])
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        bos_token_id=pad,
        eos_token_id=end,
        pad_token_id=pad,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=end, pad_token_id=pad)
    return model


def main(directory: str) -> None:
    """Write the model to `directory`, which is made if needed."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    Path(directory).mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    model.save_pretrained(directory, safe_serialization=True)
    tokenizer.save_pretrained(directory)
    for file in Path(directory).iterdir():
        file.chmod(0o644)  # safetensors writes 0600, and evaluation may run as another user
    print(f"{directory}: {model.num_parameters():,} parameters, {len(tokenizer)} tokens")


if __name__ == "__main__":
    main(sys.argv[1])
