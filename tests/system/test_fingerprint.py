"""`model_fingerprint`: other weights are another model, whose replies `nrt eval` asks for again."""

import pytest

from nrt.system.files import model_fingerprint


@pytest.mark.parametrize(
    ("model", "weights"),
    [
        ("m", "m/model.safetensors"),
        ("m", "m/pytorch_model.bin"),
        ("m/model-q4.gguf", "m/model-q4.gguf"),
    ],
)
def test_other_weights_in_the_same_place(tmp_path, model, weights):
    file = tmp_path / weights
    file.parent.mkdir()
    prints = set()
    for content in (b"one", b"two", b"one"):
        file.write_bytes(content)
        prints.add(model_fingerprint(str(tmp_path / model), thinks=True, backend="hf"))
    assert len(prints) == 2
