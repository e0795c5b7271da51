import re
import tomllib
from pathlib import Path

from nrt.errors import InputError, NrtError, RunError, unknown_name

ROOT = Path(__file__).parent.parent


def test_exit_status_tells_the_users_mistake_from_a_failed_run():
    assert (NrtError.exit_status, RunError.exit_status, InputError.exit_status) == (1, 1, 2)


def test_unknown_names_the_nearest_and_lists_all_in_order():
    error = unknown_name("method", "nrt-mg", ["sft", "nrt-gm"])
    assert isinstance(error, InputError)
    assert str(error) == "unknown method 'nrt-mg'; did you mean 'nrt-gm'? Known: nrt-gm, sft"


def test_unknown_offers_nothing_where_nothing_is_near():
    assert (
        str(unknown_name("method", "zzz", ["sft", "nrt-gm"]))
        == "unknown method 'zzz'. Known: nrt-gm, sft"
    )


def test_a_long_table_is_not_listed():
    error = unknown_name("setting", "name-7x", [f"name-{i}" for i in range(99)])
    assert "did you mean 'name-7'? The closest of 99: " in str(error)
    assert str(error).count("name-") == 12


def test_messages_name_extras_that_exist_and_never_the_unpublished_package():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    named = set()
    for file in (ROOT / "src").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert "native-reasoning[" not in text, file
        named.update(re.findall(r"install_hint\([\"'](\w+)[\"']\)", text))
    assert {"gguf", "lora", "report"} <= named <= extras.keys()
