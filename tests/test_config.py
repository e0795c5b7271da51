"""Recipes, profiles and overrides become one valid config; invalid settings are named."""

import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from nrt import config as module
from nrt.config import (
    Config,
    ObjectiveConfig,
    Section,
    build_config,
    dump_yaml,
    load_config,
    merge_settings,
    packaged_recipes,
    parse_overrides,
    parse_plain_yaml,
    parse_yaml,
)
from nrt.config.aliases import ABSENT, ALIASES
from nrt.config.validation import annotation_of
from nrt.errors import InputError
from nrt.trainer.resolve import resolve_method
from nrt.trainer.setup import steps_of

SECTIONS = [
    value
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, Section)
]


@pytest.mark.parametrize("recipe", sorted(packaged_recipes()))
def test_packaged_recipes_load(recipe):
    assert isinstance(load_config(recipe), Config)


@pytest.mark.parametrize("profile", sorted(packaged_recipes("profiles")))
def test_packaged_profiles_load_over_each_recipe(profile):
    for recipe in packaged_recipes():
        assert load_config(recipe, [f"profile={profile}"]).profile == profile


def test_the_papers_recipe_has_the_papers_values():
    """Table 6 of the paper."""
    config = load_config("paper")
    assert (config.batch, config.updates_per_rollout, config.traces) == (256, 4, 8)
    assert (config.max_prompt_tokens, config.max_trace_tokens) == (4096, 2048)
    assert config.max_trace_tokens + config.max_answer_tokens == 4096
    optimizer = config.optimizer
    assert (optimizer.lr, optimizer.schedule, optimizer.weight_decay) == (1e-5, "constant", 0.01)
    method = resolve_method(config.method, config.objective)
    assert (method.format_coef, method.ratio_clip) == (0.3, (0.2, 0.28))
    assert (method.answer_weight, config.objective.weight_norm) == ("signal", "none")


def test_later_layers_win(tmp_path):
    """schema < profile < recipe < command line, each shown by a setting that no later layer has."""
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "profile: paper\nbatch: 12\noptimizer: {weight_decay: 0.1}\nobjective: {answer_coef: 2}\n"
    )
    config = load_config(str(recipe), ["batch=16", "objective.answer_coef=3"])
    assert config.traces == 8  # schema
    assert config.objective.weight_norm == "none"  # profile, over the schema's null
    assert config.optimizer.weight_decay == 0.1  # recipe, over the profile's 0.01
    # command line, over the recipe
    assert (config.batch, config.objective.answer_coef) == (16, 3)


def test_the_command_line_may_choose_the_profile(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("profile: paper\n")
    assert load_config(str(recipe)).objective.signal_weight is None
    assert load_config(str(recipe), ["profile=recommended"]).objective.signal_weight == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stesp=3"], "unknown setting 'stesp'; did you mean 'steps'"),
        (["data.trian=x"], "unknown setting 'data.trian'; did you mean 'data.train'"),
        (["data.columns.questions=x"], "did you mean 'data.columns.question'"),
        (["lr=1e-5"], "unknown setting 'lr'; in nrt it is optimizer.lr"),
        (["optimizer.learning_rate=1"], "'optimizer.learning_rate'; in nrt it is optimizer.lr"),
        (["output_dir=x"], "unknown setting 'output_dir'; in nrt it is run"),
        (["steps=many"], "setting steps='many': input should be a valid integer"),
        (["steps=0"], "setting steps=0: input should be greater than or equal to 1"),
        (["batch=2.5"], "setting batch=2.5: input should be a valid integer"),
        (["optimizer.lr=-1"], "setting optimizer.lr=-1: input should be greater than 0"),
        (
            ["optimizer.betas=[0.9, 2]"],
            "setting optimizer.betas=2: input should be less than or equal to 1",
        ),
        (
            ["objective.answer_weight=all"],
            "setting objective.answer_weight='all': "
            "input should be 'signal', 'reward', 'beats-null' or 'posterior' or .* a valid number",
        ),
        (["eval_every=-1"], "setting eval_every=-1"),
        (["data=file"], "setting data='file': data is a section of settings"),
        (["engine=horovod"], "setting engine='horovod': input should be 'local' or 'verl'"),
        (["profile=papre"], "unknown profile 'papre'; did you mean 'paper'"),
        (["profile=[1]"], "unknown profile"),
        (["traces=0"], "traces=0: a group needs K ≥ 1 traces; set traces=8"),
        (
            ["batch=10", "updates_per_rollout=4"],
            "batch=10 cannot be split into updates_per_rollout=4 equal parts",
        ),
        (["markers.start=<m>", "markers.end=<m>"], "are the same text; set two different texts"),
        (
            ["markers.start=auto"],
            "markers.start=auto is a word, .* it starts from: markers.start_from",
        ),
        (["markers.end=eos"], "markers.end=eos is a word, which answers may contain"),
        (["steps"], "setting steps has no value; write steps=VALUE without blanks"),
        (["step"], "'step' is not a setting; write key=value"),
        (["=3"], "'=3' is not a setting; write key=value"),
    ],
)
def test_errors_name_the_setting(arguments, message):
    with pytest.raises(InputError, match=message):
        load_config("gsm8k", arguments)


def test_settings_from_python_nest_and_win_over_the_command_lines_form(tmp_path):
    """A mapping, a double underscore and a dot mean the same."""
    expected = load_config("gsm8k", ["optimizer.lr=1e-5", "optimizer.warmup=2", "run=a/b"])
    assert expected.optimizer.lr == 1e-5
    for form in (
        {"optimizer": {"lr": 1e-5, "warmup": 2}},
        {"optimizer__lr": 1e-5, "optimizer__warmup": 2},
        {"optimizer.lr": 1e-5, "optimizer": {"warmup": 2}},
    ):
        assert load_config("gsm8k", ["run=c"], run=Path("a/b"), **form) == expected


def test_no_recipe_is_the_recipe_pairs():
    assert load_config() == load_config("pairs")
    assert load_config().data.columns == Config().data.columns, "no recipe fixes columns"
    assert load_config("gsm8k").data.columns == Config().data.columns
    assert load_config("llama-3.2-3b").data.columns == Config().data.columns


@pytest.mark.parametrize("name", sorted(ABSENT))
def test_what_other_libraries_have_and_nrt_has_not(name):
    assert name not in ALIASES
    with pytest.raises(InputError, match=re.escape(f"nrt has none: {ABSENT[name]}")):
        load_config(None, [f"{name}=1"])


def test_an_unknown_setting_without_a_near_one_lists_none():
    with pytest.raises(InputError, match=r"unknown setting 'gradual'; `nrt settings WORD` sea"):
        load_config(None, ["gradual=1"])


def test_a_setting_given_twice_in_python():
    with pytest.raises(InputError, match=r"optimizer\.lr is given twice; give it once"):
        load_config(None, optimizer={"lr": 1e-4}, optimizer__lr=1e-3)


def test_errors_of_a_recipe_file_name_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("batchs: 4\n")
    with pytest.raises(InputError, match=r"^mine\.yaml: unknown setting 'batchs'; did you mean"):
        load_config("mine.yaml")
    Path("mine.yaml").write_text("batch: 4\nsteps: 3\nbatch: 5\n")
    with pytest.raises(InputError, match=r"'batch' appears twice, in lines 1 and 3; remove one"):
        load_config("mine.yaml")
    with pytest.raises(InputError, match=r"unknown recipe 'mine'.*the file is mine\.yaml"):
        load_config("mine")
    with pytest.raises(InputError, match="give one recipe, first"):
        load_config(None, ["mine.yaml"])


@pytest.mark.parametrize("name", sorted(ALIASES))
def test_names_of_other_libraries_lead_to_settings(name):
    (setting, *_) = re.findall(r"[\w.]+", ALIASES[name])
    assert annotation_of(Config, setting) is not None
    assert annotation_of(Config, name) is None
    with pytest.raises(InputError, match=re.escape(f"in nrt it is {ALIASES[name]}")):
        build_config({name: 1})


def test_a_config_is_valid_however_it_is_made():
    """Made directly, copied, or from a mapping: its profile is applied and all checks are done."""
    assert Config() == build_config() == Config.model_validate({})
    assert Config(profile="paper") == build_config({"profile": "paper"})
    own = Config(objective=ObjectiveConfig(answer_coef=2.0))
    assert own == build_config({"objective": {"answer_coef": 2.0}})
    assert own.objective.signal_weight == 1.0, "of the profile"
    for make in (
        lambda **settings: Config(**settings),
        lambda **settings: Config().model_copy(update=settings),
        lambda **settings: build_config(settings),
        lambda **settings: load_config("gsm8k", **settings),
    ):
        with pytest.raises(InputError, match="setting steps='ten': input should be a valid int"):
            make(steps="ten")
        with pytest.raises(InputError, match="unknown setting 'stesp'; did you mean 'steps'"):
            make(stesp=3)
        with pytest.raises(InputError, match="batch=10 cannot be split"):
            make(batch=10, updates_per_rollout=4)
        assert make(optimizer={"lr": 1e-6}).optimizer.lr == 1e-6
    with pytest.raises(ValidationError):
        Config().optimizer.model_copy(update={"lr": -1})
    with pytest.raises(InputError, match="profile=recommended are part of this config already"):
        Config().model_copy(update={"profile": "paper"})


def test_a_runs_settings_are_complete():
    """A stored config is not changed by a profile that has more settings than when it was made."""
    assert parse_yaml("profile: recommended", "config.yaml").objective.signal_weight is None


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(InputError, match="unknown recipe 'gsm9k'; did you mean 'gsm8k'"):
        load_config("gsm9k")


def test_recipe_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml: no such file"):
        load_config(str(tmp_path / "none.yaml"))
    path = tmp_path / "bad.yaml"
    messages = {
        "a: [": "not valid YAML",
        "- a\n": "must hold settings",
        "stesp: 3\n": "did you mean 'steps'",
    }
    for text, message in messages.items():
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            load_config(str(path))


def test_an_empty_recipe_is_the_default(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing\n")
    assert load_config(str(path)) == build_config()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("optimizer.lr=1e-5", 1e-5),  # text in YAML 1.1
        ("optimizer.lr=1.0e-5", 1e-5),
        ("steps=1_000", 1000),
        ("steps=null", None),
        ("data.shuffle=false", False),
        ("optimizer.betas=[0.9, 0.95]", (0.9, 0.95)),
        ("trackers=tensorboard", ("tensorboard",)),
        ("trackers=tensorboard,wandb", ("tensorboard", "wandb")),
        ("trackers=[tensorboard, wandb]", ("tensorboard", "wandb")),
        ("data.answer=after:####", "after:####"),
        ("data.answer=after: ####", "after: ####"),
        ("data.system=x # y", "x # y"),  # not a comment
        ("data.system='x # y'", "x # y"),
        ('markers.start_from="\\n"', "\n"),
        ("markers.start=<|a|>", "<|a|>"),
        ("data.system=null", None),
        ("data.train=a=b", "a=b"),
        ("data.train={a: 1}", "{a: 1}"),
        ("data.train=[a", "[a"),
        ("run=0012", "0012"),
        ("run=1e5", "1e5"),
        ("run=2026-11-20", "2026-11-20"),
        ("model=no", "no"),
        ("data.system=# Be brief", "# Be brief"),  # a comment in YAML
        ("run=#5", "#5"),
        ("seed=010", 10),  # octal in YAML 1.1
        ("steps=~", None),
    ],
)
def test_values_on_the_command_line(setting, value):
    config = load_config("gsm8k", [setting])
    for part in setting.split("=")[0].split("."):
        config = getattr(config, part)
    assert config == value
    assert type(config) is type(value)


def test_line_breaks_of_templates_on_the_command_line():
    r"""As the help of data.columns writes them; elsewhere, \n may begin \nabla."""
    settings = parse_overrides(
        [r"data.columns.question={a}\n\n{b}", r"markers.end_from=\n", r"data.system=\nabla"]
    )
    assert settings["data"]["columns"]["question"] == "{a}\n\n{b}"
    assert settings["markers"]["end_from"] == "\n"
    assert settings["data"]["system"] == r"\nabla"


def test_overrides_nest_and_the_last_one_wins():
    overrides = ["data.train=x.jsonl", "steps=3", "data.valid=y", "steps=4"]
    assert parse_overrides(overrides) == {
        "data": {"train": "x.jsonl", "valid": "y"},
        "steps": 4,
    }


def test_merge_does_not_change_its_arguments():
    lower = {"a": {"b": 1}}
    assert merge_settings(lower, {"a": {"c": 2}}) == {"a": {"b": 1, "c": 2}}
    assert lower == {"a": {"b": 1}}


@pytest.mark.parametrize("recipe", sorted(packaged_recipes()))
def test_yaml_round_trip(recipe):
    overrides = ["optimizer.lr=1e-5", "objective.ratio_clip=[0.2, 0.28]", "trackers=tensorboard"]
    config = load_config(recipe, overrides)
    text = dump_yaml(config)
    assert text.startswith("schema_version: 1\n")
    assert parse_yaml(text, "config.yaml") == config


@settings(deadline=None, max_examples=50)
@given(st.text(), st.floats(min_value=0, exclude_min=True, allow_infinity=False))
def test_yaml_round_trip_of_any_text_and_number(text, number):
    config = build_config({"data": {"system": text}, "optimizer": {"lr": number}})
    assert parse_yaml(dump_yaml(config), "config.yaml") == config


def test_a_later_schema_is_refused():
    with pytest.raises(InputError, match=r"config\.yaml has schema version 2, this nrt reads 1"):
        parse_yaml("schema_version: 2\n", "config.yaml")


def test_the_config_of_a_run_is_a_recipe(tmp_path):
    config = build_config({"batch": 3, "run": "first"})
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(config))
    assert load_config(str(file), ["run=second"]) == config.model_copy(update={"run": "second"})
    file.write_text("schema_version: 2\n")
    with pytest.raises(InputError, match="schema version 2"):
        load_config(str(file))


def test_frozen():
    config = Config()
    for section in (config, config.data, config.data.columns):
        with pytest.raises(ValidationError, match="frozen"):
            section.run = "other"  # type: ignore[attr-defined]


@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_is_documented(section):
    assert section.__doc__
    assert not [name for name, field in section.model_fields.items() if not field.description]


def test_recipes_cite_or_explain_themselves():
    for file in packaged_recipes().values():
        assert Path(str(file)).read_text(encoding="utf-8").startswith("#")


# --- YAML that expands to far more than its text ---


def nine_aliases(i: int) -> str:
    return ", ".join([f"*a{i}"] * 9)


BOMBS = {
    "merge keys": "a0: &a0 {x: 1}\n"
    + "".join(f"a{i}: &a{i}\n  <<: [{nine_aliases(i - 1)}]\n" for i in range(1, 12)),
    "aliases": "a0: &a0 [1]\n"
    + "".join(f"a{i}: &a{i} [{nine_aliases(i - 1)}]\n" for i in range(1, 12)),
    "a list in itself": "a: &a [*a]\n",
    "a mapping merged into itself": "a: &a {<<: *a}\n",
    "many values": "- 1\n" * 100_000,
    "nested lists": "[" * 3000,
    "a number in base 60": "steps: " + ":".join(["1"] * 300_000) + "\n",
    "a number of a million digits": "steps: " + "1" * 10**6 + "\n",
}


@pytest.mark.parametrize("name", BOMBS)
def test_yaml_that_would_be_huge_is_refused_before_it_is(name, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(BOMBS[name])
    started = time.perf_counter()
    message = r"is not valid YAML|holds more than 10,000 values"
    with pytest.raises(InputError, match=message) as caught:
        load_config(str(file))
    assert time.perf_counter() - started < 5, "2 s on an idle machine"
    assert len(str(caught.value).splitlines()) == 1


def test_aliases_and_merge_keys_of_an_ordinary_size_are_read():
    text = (
        "base: &base {lr: 1.0, warmup: 2}\n"
        "mid: &mid {<<: *base, lr: 3.0}\n"
        "deep: {one: {two: &two {<<: *mid, lr: 4.0}}}\n"
        "last: {<<: *two}\n"
    )
    assert parse_plain_yaml(text, "recipe.yaml") == {
        "base": {"lr": 1.0, "warmup": 2},
        "mid": {"lr": 3.0, "warmup": 2},
        "deep": {"one": {"two": {"lr": 4.0, "warmup": 2}}},
        "last": {"lr": 4.0, "warmup": 2},
    }


@pytest.mark.parametrize(
    "text",
    [
        "steps: 3\nmethod: sft\nsteps: 5\n",
        "optimizer: {lr: 1.0, lr: 2.0}\n",
        "'steps': 3\nsteps: 5\n",
    ],
)
def test_a_duplicate_key_in_a_recipe_is_an_error(text, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    message = r"'(steps|lr)' appears twice, in lines \d and \d; remove one"
    with pytest.raises(InputError, match=message):
        load_config(str(file))


def test_an_address_with_a_password_is_refused_and_not_shown():
    settings = {"sampler": "vllm", "vllm": {"urls": ["http://ann:secret@127.0.0.1:8643"]}}
    message = r"^vllm.urls: an address with a user or a password would be stored and shown"
    with pytest.raises(InputError, match=message) as caught:
        build_config(settings)
    assert "secret" not in str(caught.value)


def test_a_copy_changes_only_what_it_names():
    config = build_config({"optimizer": {"lr": 1e-3, "warmup": 5}})
    copy = config.model_copy(update={"optimizer": {"lr": 2e-3}, "steps": 4})
    assert (copy.optimizer.lr, copy.optimizer.warmup, copy.steps) == (2e-3, 5, 4)
    with pytest.raises(InputError, match=r"optimizer\.lr=-1"):
        config.model_copy(update={"optimizer": {"lr": -1}})


def test_epochs_are_steps_of_the_rows():
    """7 steps of 4 make one epoch of 31 rows, rounded down; `steps` goes before both."""
    assert steps_of(Config(batch=4), 31) == 7
    assert steps_of(Config(batch=4, epochs=2.5), 31) == 77 // 4
    assert steps_of(Config(batch=4, epochs=0.01), 31) == 1
    assert steps_of(Config(batch=4, steps=3), 31) == 3
    with pytest.raises(InputError, match="both say how long to train"):
        Config(steps=3, epochs=2)
    with pytest.raises(InputError, match="one of them to null"):
        load_config("miniature", ["epochs=2"])
    assert load_config("miniature", ["epochs=2", "steps=null"]).epochs == 2
