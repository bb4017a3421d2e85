"Models and tokenizers: what can be loaded, what makes a pair, and how the tiny pair learns."

import time

import pytest
import torch

from cmdp_nbdev.model import (
    CHAIN_CHARS,
    char_tokenizer,
    check_pair,
    check_vocab,
    load_model,
    load_tokenizer,
    num_ids,
    pretrain,
    save_plain,
    tiny_model,
)
from cmdp_nbdev.task import ChainTask


@pytest.fixture
def tok():
    return char_tokenizer()


def test_one_character_is_one_token(tok):
    "Costs per token can be read off the text, and padding stands on the left."
    ids = tok("3+8=1#1$")["input_ids"]
    assert len(ids) == 8 and ids[-1] == tok.eos_token_id
    assert tok.decode(ids, skip_special_tokens=True) == "3+8=1#1"
    padded = tok(["1+2=", "1="], padding=True)["attention_mask"]
    assert padded == [[1, 1, 1, 1], [0, 0, 1, 1]]


def test_a_saved_tokenizer_is_the_same(tok, tmp_path):
    "What loads it later needs no code of this package."
    tok.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again("3*5=")["input_ids"] == tok("3*5=")["input_ids"]
    check_pair(tok, again)


def test_a_saved_model_is_the_same(tok, tmp_path):
    "A student must be in its folder as it was in memory."
    model = tiny_model(32, tok)
    save_plain(model, tmp_path)
    again = load_model(str(tmp_path))
    for a, b in zip(model.parameters(), again.parameters()):
        assert torch.equal(a, b)


def test_swapped_tokens_are_named(tok):
    "A divergence between different alphabets would be a number without a meaning."
    with pytest.raises(ValueError, match="2 of 19 ids differ .id 13: student '.', teacher '-'"):
        check_pair(tok, char_tokenizer("0123456789-+*=;#"))


def test_further_tokens_are_the_teachers_right_only(tok):
    "They are cut off like padding; a token that only the student knows has no teacher."
    longer = char_tokenizer(CHAIN_CHARS + "x")
    check_pair(tok, longer)
    with pytest.raises(ValueError, match="id 19: student 'x', teacher None"):
        check_pair(longer, tok)


def test_another_end_of_text_is_for_the_user_to_settle(tok):
    "A teacher that ends with another token would be asked about one it never expects."
    with pytest.raises(ValueError, match="eos_token=';' would"):
        check_pair(tok, load_tokenizer(char_tokenizer(), eos_token=";"))


class BigTokenizer:
    "What is read of a tokenizer to compare it with another."

    eos_token_id, eos_token = 0, "token 0"

    def __init__(self, size, **changed):
        self.vocab = {changed.get(f"id{i}", f"token {i}"): i for i in range(size)}

    def __len__(self):
        return len(self.vocab)

    def get_vocab(self):
        "Every string and its id."
        return self.vocab


def test_a_pair_of_large_vocabularies_is_compared_in_one_pass():
    "A scan of the vocabulary for every id of it takes minutes at today's 150 thousand ids."
    size = 150_000
    student, start = BigTokenizer(size), time.perf_counter()
    check_pair(student, BigTokenizer(size + 100))
    with pytest.raises(ValueError, match="1 of 150000 ids differ .id 149999: .* teacher 'other'"):
        check_pair(student, BigTokenizer(size, id149999="other"))
    assert num_ids(student) == size
    assert time.perf_counter() - start < 20


def test_a_model_with_too_few_rows_has_another_tokenizer(tok):
    "Ids beyond the last row would fail far from the cause."
    model = tiny_model(32, tok)
    check_vocab(model, tok, "student")
    with pytest.raises(ValueError, match="teacher has 19 output rows but the tokenizer has 20 ids"):
        check_vocab(model, char_tokenizer(CHAIN_CHARS + "x"), "teacher")


def test_what_cannot_be_loaded(tok):
    "The error names the argument and what was looked for."
    with pytest.raises(FileNotFoundError, match="teacher='./nowhere': there is no such folder"):
        load_model("./nowhere", "teacher")
    with pytest.raises(TypeError, match="model must be a model, a folder or a name, got int"):
        load_model(3)
    with pytest.raises(TypeError, match="must be a tokenizer, a folder or a name, got int"):
        load_tokenizer(3)
    with pytest.raises(ValueError, match="eos_token='<end>' is no token"):
        load_tokenizer(tok, eos_token="<end>")


def test_pretraining_learns_from_several_tasks(tok):
    "Thirty steps are enough to see that the labels are where the model looks."
    losses = pretrain(
        tiny_model(32, tok), tok, [ChainTask(3), ChainTask(4)], steps=30, batch_size=32
    )
    assert len(losses) == 30 and losses[-1] < losses[0] - 1


@pytest.mark.parametrize("steps", [1, 19, 20, 21])
def test_pretraining_takes_any_number_of_steps(tok, steps):
    "A warm-up of one step was a division by zero."
    assert len(pretrain(tiny_model(16, tok), tok, steps=steps, batch_size=2)) == steps
