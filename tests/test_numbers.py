"In which numbers a run computes: decided once, by measurement where models are large, and said."

import json
import os
import sys
import warnings

import pytest
import torch
from conftest import embedded, flat
from datasets import Dataset
from transformers import AutoModelForCausalLM

from cmdp_nbdev import model as model_room
from cmdp_nbdev import preflight, processor
from cmdp_nbdev.distil import with_threads
from cmdp_nbdev.evaluate import evaluate
from cmdp_nbdev.model import char_tokenizer, check_pair, outline, tiny_model
from cmdp_nbdev.options import RunArguments, parse_args
from cmdp_nbdev.prepare import PrepareArguments, cross_entropy, decided_bf16, load_fast, rank_splits
from cmdp_nbdev.processor import available_cores, core_quota, suitable_threads
from cmdp_nbdev.task import chain_dataset, chain_reward
from cmdp_nbdev.trainer import CMDPConfig, CMDPTrainer

CPU, LARGE = torch.device("cpu"), 1e9
QUICK = dict(
    max_steps=1,
    per_device_train_batch_size=4,
    num_generations=4,
    max_completion_length=4,
    device="cpu",
)


def machine(monkeypatch, factor: float) -> list:
    "Let bfloat16 take `factor` times as long as float32; returns the dtypes that were measured."
    asked = []

    def measured(dtype, kind="cpu"):
        asked.append(dtype)
        return factor

    for room in (processor, preflight):
        monkeypatch.setattr(room, "slowdown", measured)
    return asked


@pytest.fixture
def folders(tmp_path):
    "A student in float32 and a teacher in bfloat16, in folders."
    tokenizer = char_tokenizer()
    for seed, (who, dtype) in enumerate({"s": torch.float32, "t": torch.bfloat16}.items()):
        tiny_model(32, tokenizer, seed=seed).to(dtype).save_pretrained(tmp_path / who)
        tokenizer.save_pretrained(tmp_path / who)
    return tmp_path


def build(folders, teacher=None, student=None, **settings):
    "A trainer on the folders."
    args = embedded(**{**QUICK, "output_dir": str(folders / "run"), **settings})
    rows = chain_dataset(16), chain_dataset(4, "test")
    given = str(folders / "t") if teacher is None else teacher
    student = str(folders / "s") if student is None else student
    return CMDPTrainer(student, given, chain_reward, args, *rows, char_tokenizer())


# --- What is decided


@pytest.mark.parametrize("factor,large", [(50, False), (1.2, False), (0.9, False), (0.4, True)])
def test_auto_is_bfloat16_where_it_is_clearly_faster(monkeypatch, factor, large):
    "A factor that noise could make decides nothing; a tiny model is float32 on every processor."
    asked = machine(monkeypatch, factor)
    assert processor.choose_bf16("auto", 1e5, CPU) is False and not asked
    assert processor.choose_bf16("auto", LARGE, CPU) is large and asked
    assert processor.choose_bf16(True, LARGE, CPU) and not processor.choose_bf16(False, LARGE, CPU)


def test_several_processes_decide_alike(monkeypatch):
    "Each would measure for itself, and one that differed would wait for the others for ever."
    machine(monkeypatch, 0.4)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert processor.choose_bf16("auto", LARGE, CPU) is False


def test_an_accelerator_is_asked_not_measured(monkeypatch):
    "Emulated bfloat16 (before Ampere) is none."
    asked = machine(monkeypatch, 50)
    for has in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **how: has)
        assert processor.choose_bf16("auto", LARGE, torch.device("cuda")) is has
    assert (
        not asked and processor.fast_dtype(torch.bfloat16, torch.device("cuda")) is torch.bfloat16
    )


def test_the_measurement_takes_milliseconds_and_draws_nothing():
    "It must not move the random numbers of a run."
    before = torch.get_rng_state()
    processor.slowdown.cache_clear()
    assert processor.slowdown(torch.bfloat16) > 0
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("value", [True, "true", "True", 1, "1"])
def test_a_switch_is_written_in_many_ways(value):
    "As transformers, YAML and a command line write it; None is transformers' word for auto."
    assert embedded(bf16=value).bf16 is True
    assert embedded(bf16=not value if isinstance(value, int) else "false").bf16 is False
    assert embedded().bf16 == embedded(bf16=None).bf16 == "auto"
    with pytest.raises(ValueError, match="bf16 must be auto, true or false, got 'maybe'"):
        embedded(bf16="maybe")


@pytest.mark.parametrize(
    "words,value", [([], "auto"), (["--bf16"], True), (["--bf16", "false"], False)]
)
def test_the_switch_on_the_command_line(words, value):
    "`--bf16` alone switched it on and still does."
    assert CMDPConfig(**parse_args(words)[1]).bf16 == value


def test_the_default_gives_way_to_fp16():
    "auto is no wish that could contradict."
    assert (
        preflight.settle(embedded(fp16=True), tiny_model(16, char_tokenizer()), None).bf16 is False
    )


# --- The teacher


@pytest.mark.parametrize("factor,dtype", [(50, torch.float32), (0.4, torch.bfloat16)])
def test_a_teacher_by_name_is_loaded_as_the_processor_multiplies(
    folders, monkeypatch, factor, dtype
):
    "Kept in the bfloat16 of its folder it made 18 of the 28 seconds of an update."
    machine(monkeypatch, factor)
    trainer = build(folders)
    assert trainer.teacher.dtype == dtype and trainer.student.dtype == torch.float32
    assert trainer.job.numbers["teacher_dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_a_dtype_that_was_given_is_kept_and_warned_of(folders, monkeypatch, name):
    "The user wins; once, and with the factor."
    machine(monkeypatch, 52.3)
    with pytest.warns(UserWarning, match="teacher is kept in bfloat16, .* 52.3 times slower"):
        trainer = build(folders, teacher_model_init_kwargs={name: "bfloat16"})
    assert trainer.teacher.dtype == torch.bfloat16


def test_a_teacher_object_in_bfloat16_is_warned_of(folders, monkeypatch):
    "It is somebody's object: it is not changed."
    machine(monkeypatch, 52.3)
    teacher = AutoModelForCausalLM.from_pretrained(folders / "t")
    with pytest.warns(UserWarning, match=r"52.3 times slower .* teacher.float\(\)"):
        assert build(folders, teacher).teacher is teacher and teacher.dtype == torch.bfloat16


@pytest.mark.parametrize("what", ["student", "base of an adapter"])
def test_a_student_object_in_bfloat16_is_warned_of(folders, monkeypatch, what):
    "By its path it would be loaded in float32; the object took five times as long, silently."
    machine(monkeypatch, 52.3)
    student = AutoModelForCausalLM.from_pretrained(folders / "s").bfloat16()
    if what != "student":
        peft = pytest.importorskip("peft")
        about = peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
        student = peft.get_peft_model(student, about)
    with pytest.warns(UserWarning, match=r"model is kept in bfloat16, .* 52.3 times slower .*"):
        trainer = build(folders, student=student)
    assert trainer.job.numbers["student_dtype"] == "bfloat16"


def test_a_path_and_an_object_are_computed_alike(folders, monkeypatch):
    "The same weights to the last digit; config.json says how each was given, and what it is."
    machine(monkeypatch, 50)
    student, teacher = (AutoModelForCausalLM.from_pretrained(folders / who) for who in "st")
    given = {"path": {}, "object": {"student": student, "teacher": teacher.float()}}
    runs = {how: build(folders, output_dir=str(folders / how), **g) for how, g in given.items()}
    found = {}
    for how, trainer in runs.items():
        trainer.train()
        found[how] = json.loads((trainer.output_dir / "config.json").read_text())
        models = found[how]["models"]
        assert [m["given"] for m in models.values()] == [how, how]
        assert [m["name"] for m in models.values()] == [str(folders / who) for who in "st"]
        assert models["student"]["trained_parameters"] == models["student"]["parameters"] > 0
    assert found["path"]["numbers"] == found["object"]["numbers"]
    assert torch.equal(*(flat(trainer.student) for trainer in runs.values()))


def test_a_function_is_written_down_as_one(folders):
    "It has neither a dtype nor a size."
    model = AutoModelForCausalLM.from_pretrained(folders / "t").float()
    trainer = build(folders, lambda ids, mask: model(ids, attention_mask=mask))
    assert trainer.job.models["teacher"] == {"given": "function", "class": "function"}
    assert trainer.job.numbers["teacher_dtype"] is None


def test_bf16_that_was_asked_for_is_warned_of(folders, monkeypatch):
    "With the measured factor; without a warning where it is fast."
    machine(monkeypatch, 52.3)
    with pytest.warns(UserWarning, match="bf16=True: bfloat16, .* 52.3 times slower than float32"):
        assert build(folders, bf16=True).accelerator.mixed_precision == "bf16"
    machine(monkeypatch, 0.4)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        build(folders, bf16=True)


def test_evaluate_warns_of_a_slow_dtype(folders, monkeypatch):
    "Also where no trainer is."
    machine(monkeypatch, 52.3)
    student, teacher = (AutoModelForCausalLM.from_pretrained(folders / who) for who in "st")
    given = chain_dataset(2, "test"), char_tokenizer(), chain_reward
    with pytest.warns(UserWarning, match="teacher is kept in bfloat16, .* 52.3 times slower"):
        evaluate(student, teacher, *given, max_completion_length=2)


def test_preparing_computes_in_what_is_fast(folders, monkeypatch):
    "A stage that exists is read in the dtype of the folder only where that is fast."
    for factor, dtype in ((50, torch.float32), (0.4, torch.bfloat16)):
        machine(monkeypatch, factor)
        assert load_fast(folders / "t").dtype == dtype


# --- Decided once


def test_a_run_goes_on_in_the_numbers_of_its_start(folders, monkeypatch):
    "On another machine, too; config.json and a checkpoint given by its path both lead there."
    machine(monkeypatch, 50)
    monkeypatch.setattr(preflight, "choose_bf16", lambda asked, *more: asked == "auto" or asked)
    first = build(folders, save_steps=1)
    first.train()
    config = json.loads((folders / "run" / "config.json").read_text())
    assert config["bf16"] is True and config["numbers"]["autocast"] == "bf16"
    assert config["teacher_model_init_kwargs"] == {"dtype": "float32"}
    assert config["numbers"]["threads"] == torch.get_num_threads()

    machine(monkeypatch, 0.4)  # would keep the teacher in bfloat16
    monkeypatch.setattr(preflight, "choose_bf16", lambda asked, *more: asked is True)
    for where in ("auto", str(folders / "run" / "checkpoint-1")):
        second = build(folders, resume_from_checkpoint=where)
        assert second.args.bf16 is True and second.teacher.dtype == torch.float32
        second.begin(where)
        assert second.global_step == 1
    third = build(folders)
    third.begin("auto")  # as README does: train(resume_from_checkpoint="auto")
    assert third.args.bf16 is True and third.global_step == 1


def test_config_json_alone_repeats_the_decision(folders, monkeypatch):
    "Its settings hold no 'auto': fed back they need no measurement."
    machine(monkeypatch, 50)
    first = build(folders)
    first.begin()
    config = json.loads((folders / "run" / "config.json").read_text())
    machine(monkeypatch, 0.4)
    again = build(
        folders,
        bf16=config["bf16"],
        teacher_model_init_kwargs=config["teacher_model_init_kwargs"],
        output_dir=str(folders / "again"),
    )
    assert again.args.bf16 is False and again.teacher.dtype == torch.float32


def test_another_number_of_threads_is_said(folders, monkeypatch):
    "The order of additions changes with it."
    build(folders).begin()
    path = folders / "run" / "config.json"
    config = json.loads(path.read_text())
    config["numbers"]["threads"] = 7
    path.write_text(json.dumps(config))
    with pytest.warns(UserWarning, match=r"begun on 7 threads .* torch.set_num_threads\(7\)"):
        build(folders)


def test_a_pair_is_prepared_in_the_numbers_of_its_start(tmp_path, monkeypatch):
    "prepare.json of an earlier release says true or false and is taken at its word."
    machine(monkeypatch, 50)
    args = PrepareArguments()
    assert args.bf16 == "auto" and decided_bf16(tmp_path, args, LARGE) is False
    (tmp_path / "prepare.json").write_text(json.dumps({"bf16": True}))
    assert decided_bf16(tmp_path, args, LARGE) is True
    assert decided_bf16(tmp_path, PrepareArguments(bf16="false"), LARGE) is False


def test_the_embedded_pair_is_float32_whatever_the_machine(make_trainer, monkeypatch):
    "And nothing is measured for it."
    asked = machine(monkeypatch, 0.01)
    trainer = make_trainer()
    assert trainer.accelerator.mixed_precision == "no" and not asked
    assert trainer.job.numbers["bf16_slowdown"] is None


# --- Threads


@pytest.mark.parametrize(
    "files,cores",
    [
        ({}, float("inf")),
        ({"cpu.max": "max 100000\n"}, float("inf")),
        ({"cpu.max": "250000 100000\n"}, 2.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, float("inf")),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
    ],
)
def test_the_quota_of_a_container(tmp_path, files, cores):
    "Both generations of control groups."
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert core_quota(tmp_path) == cores


@pytest.mark.parametrize("quota,cores", [(float("inf"), 3), (2.5, 2), (0.5, 1)])
def test_cores_are_those_of_this_process(monkeypatch, quota, cores):
    "Affinity and quota, and never none."
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    monkeypatch.setattr(processor, "core_quota", lambda: quota)
    assert available_cores() == cores


@pytest.mark.parametrize(
    "parameters,cores,busy,threads",
    [(1e5, 8, False, 1), (LARGE, 8, False, 4), (LARGE, 2, False, 2), (LARGE, 8, True, 1)],
)
def test_threads_by_size_and_cores(monkeypatch, parameters, cores, busy, threads):
    "One for a tiny model or a busy machine; else torch's number, if there are so many cores."
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(processor, "available_cores", lambda: cores)
    monkeypatch.setattr(processor, "seconds_on", lambda n: n if busy else 1 / n)
    assert suitable_threads(parameters) == threads


def test_the_command_takes_threads_from_the_option_then_from_the_run(folders):
    "A run that goes on adds in the order in which it began."
    run, config = RunArguments(student=str(folders / "s")), embedded(output_dir=str(folders))
    assert with_threads(run, config).num_threads == 1
    (folders / "config.json").write_text('{"numbers": {"threads": 3}}')
    assert with_threads(run, config).num_threads == 3
    assert with_threads(RunArguments(student="s", num_threads=2), config).num_threads == 2


def test_the_library_leaves_the_threads_of_a_program_alone(folders, monkeypatch):
    "They are set by commands only; too many are warned of."
    monkeypatch.setattr(torch, "set_num_threads", lambda n: pytest.fail("was set"))
    monkeypatch.setattr(preflight, "available_cores", lambda: 0)
    with pytest.warns(UserWarning, match="wait for each other"):
        build(folders)


# --- Signs of life


@pytest.mark.parametrize("off", ["by TQDM_DISABLE", "by disable_tqdm", ""])
def test_the_first_line_goes_to_stderr_and_is_switched_off_with_the_bars(
    folders, monkeypatch, capsys, off
):
    "Models given by name are announced, tiny or not."
    monkeypatch.setenv("TQDM_DISABLE", "1" if "TQDM" in off else "")
    build(folders, disable_tqdm="disable_tqdm" in off)
    said = capsys.readouterr()
    assert "million parameters" not in said.out
    assert ("million parameters, float32; computing in float32 on 1 thread" in said.err) == (
        not off
    )


def test_the_line_of_a_large_model_states_the_factor(monkeypatch):
    "What the processor can do is why the numbers are what they are."
    machine(monkeypatch, 52.3)
    monkeypatch.setattr(preflight, "TINY", 100)
    pair = tiny_model(16, char_tokenizer()), lambda ids, mask: None
    line = preflight.first_line(preflight.settle(embedded(device="cpu"), *pair), *pair)
    assert "teacher: a function" in line and "computing in float32 on 1 thread" in line
    assert line.startswith("student, an object: 0.00")
    assert "bfloat16 is 52.3 times slower than float32 on this processor" in line
    tiny = tiny_model(16, char_tokenizer())
    monkeypatch.undo()
    assert preflight.first_line(embedded(), tiny, tiny) == ""  # nothing in a lesson


def test_the_line_comes_before_anything_is_loaded(folders, monkeypatch):
    "Tokenizers and weights may take their time after it."
    said = []
    monkeypatch.setattr(preflight, "say", lambda line, disable: said.append(line))
    monkeypatch.setattr(preflight, "load_tokenizer", lambda *given: sys.exit("loading"))
    with pytest.raises(SystemExit):
        build(folders)
    assert len(said) == 2 and said[1].startswith(f"student {folders / 's'}: ")


@pytest.fixture
def bars(monkeypatch):
    "All bars that are asked for."
    seen, real = [], processor.tqdm

    def drawn(**settings):
        seen.append(settings)
        return real(total=0, disable=True)

    monkeypatch.setattr(processor, "tqdm", drawn)
    return seen


def test_everything_long_has_a_bar(folders, bars, monkeypatch):
    "Construction, evaluation, a suggested budget, preparing: at once if not tiny."
    monkeypatch.setattr(processor, "TINY", 100)
    trainer = build(folders)
    trainer.suggest_budget()
    tokenizer, student = char_tokenizer(), trainer.student
    rows = Dataset.from_dict({"prompt": ["1+1="] * 3, "completion": ["2"] * 3})
    cross_entropy(student, tokenizer, rows)
    rank_splits(student, tokenizer, rows, 1)
    said = {b["desc"]: b for b in bars}
    names = "checking train_dataset,checking eval_dataset,evaluating,cross-entropy,trying splits"
    assert set(names.split(",")) <= set(said)
    assert said["evaluating"]["total"] == 4 and said["evaluating"]["delay"] == 0


def test_bars_of_a_tiny_model_wait_and_can_be_switched_off(folders, bars):
    "A lesson evaluates in a second and shows nothing; disable_tqdm means every bar."
    build(folders).evaluate()
    assert {b["delay"] for b in bars if b["desc"] == "evaluating"} == {5.0}
    bars.clear()
    build(folders, disable_tqdm=True).evaluate()
    assert bars and all(b["disable"] for b in bars)


# --- Start-up grows with the vocabulary, not with its square


class Id(int):
    "An id that counts how often any is compared."

    compared = 0

    def _count(name):
        def compare(self, other):
            Id.compared += 1
            return getattr(int, name)(self, other)

        return compare

    __lt__, __gt__, __le__, __ge__ = map(_count, ("__lt__", "__gt__", "__le__", "__ge__"))


def vocabulary_work(n: int, folder, monkeypatch) -> tuple[int, int]:
    "Comparisons of ids, and vocabularies read, in constructing a trainer with n ids."
    tokenizer = char_tokenizer("".join(chr(0x4E00 + i) for i in range(n)))
    for who in "st":
        tiny_model(16, tokenizer).save_pretrained(folder / who)
        tokenizer.save_pretrained(folder / who)
    kind, reads = type(tokenizer), []
    real = kind.get_vocab
    with monkeypatch.context() as patch:

        def counted(self):
            reads.append(self)
            return {k: Id(i) for k, i in real(self).items()}

        patch.setattr(kind, "get_vocab", counted)
        Id.compared = 0
        args = embedded(**QUICK, output_dir=str(folder / "run"))
        prompts = Dataset.from_dict({"prompt": [chr(0x4E00)] * 4})
        pair = str(folder / "s"), str(folder / "t")
        CMDPTrainer(*pair, lambda completions, **columns: [0.0] * len(completions), args, prompts)
        return Id.compared, len(reads)


def test_construction_grows_linearly_with_the_vocabulary(tmp_path, monkeypatch):
    "The maximum of the vocabulary was taken for every one of its ids: a minute for 49,152."
    small, reads = vocabulary_work(200, tmp_path / "small", monkeypatch)
    large, again = vocabulary_work(800, tmp_path / "large", monkeypatch)
    assert 0 < large <= 5 * small
    assert reads == again <= 6


def test_the_outline_is_that_of_the_model(folders):
    "Size and dtype without a weight; what cannot be outlined is for the loader to refuse."
    size = sum(p.numel() for p in tiny_model(32, char_tokenizer()).parameters())
    assert outline(folders / "t") == (size, torch.bfloat16)
    assert outline(tiny_model(32, char_tokenizer())) == (size, torch.float32)
    assert outline(folders / "nowhere") == outline(3) == (float("inf"), None)
    assert model_room.num_parameters(tiny_model(32, char_tokenizer())) == size


def test_a_pair_of_other_words_is_still_refused():
    "The quick comparison is the same comparison."
    with pytest.raises(ValueError, match="do not share a tokenizer: 2 of"):
        check_pair(char_tokenizer("12"), char_tokenizer("21"))
