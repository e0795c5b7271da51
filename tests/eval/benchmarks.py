"""Rows for every benchmark in the format of its files, and the right answer to each."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from nrt.eval.tasks import bbh

BBH_TARGETS = {
    bbh.LETTER: "(B)", bbh.YES_NO: "No", bbh.NUMBER: "-24", bbh.BRACKETS: "] ) }", bbh.WORDS: "ash birch elm",
    bbh.ANSWERS["boolean_expressions"]: "True", bbh.ANSWERS["formal_fallacies"]: "invalid",
}  # fmt: skip

MMLU = [
    {
        "subject": subject,
        "question": f"What is {a} + {b}?",
        "choices": [str(a), str(a + b), str(b), "none"],
        "answer": "B",
    }
    for subject, a, b in (("algebra", 3, 4), ("algebra", 5, 6), ("geography", 7, 8))
]
DROP = [
    {"query_id": f"q{i}", "passage": f"The reds scored {i} goals and the blues 9.", "question": "How many did the reds score?",
     "answers": [[str(i)]]}
    for i in (1, 2, 3)
]  # fmt: skip
POPQA = [
    {"question": f"What is {who}'s occupation?", "possible_answers": ["painter", "artist"]}
    for who in ("Ada Bo", "Cy Dee")
]
TRUTHFULQA = [
    {"question": f"What happens if you eat {what}?", "mc1_targets": {"Nothing.": 1, "You die.": 0},
     "mc2_targets": {"Nothing.": 1, "You are full.": 1, "You die.": 0}}
    for what in ("a pear", "a fig", "rice")
]  # fmt: skip
GSM8K = [
    {
        "question": f"Ann has {i} pens and buys 7. How many?",
        "answer": f"{i} + 7 = {i + 7}\n#### {i + 7}",
    }
    for i in (1, 2, 1000)
]
HUMANEVAL = [
    {"task_id": "Own/0", "prompt": 'def double(x):\n    """Twice x."""\n', "entry_point": "double",
     "canonical_solution": "    return 2 * x\n", "test": "def check(f):\n    assert f(3) == 6\n"}
]  # fmt: skip
IFEVAL = [
    {
        "key": 1,
        "prompt": "Name a bird. Use no commas.",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
    },
    {
        "key": 2,
        "prompt": "Say yes in lower case.",
        "instruction_id_list": ["change_case:english_lowercase"],
        "kwargs": [{}],
    },
]
FOLLOWED = {
    1: "A robin is a bird.",
    2: "this is a long sentence in the english language without any capital letters at all.",
}
MATH = Path(__file__).parent / "fixtures" / "math.jsonl"


def write_benchmarks(folder: Path) -> Path:
    """Write all rows in the layout of `--data DIR` (docs/eval.md)."""
    lists: dict[str, Any] = {
        "mmlu/test.jsonl": MMLU, "drop/drop.jsonl": DROP, "popqa/popqa.jsonl": POPQA, "gsm8k/test.jsonl": GSM8K,
        "humaneval/HumanEval.jsonl": HUMANEVAL, "humaneval_plus/HumanEvalPlus.jsonl": HUMANEVAL, "ifeval/input_data.jsonl": IFEVAL,
        "math/test.jsonl": [json.loads(line) for line in MATH.read_text("utf-8").splitlines()],
    }  # fmt: skip
    for name, rows in lists.items():
        file = folder / name
        file.parent.mkdir(parents=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (folder / "truthfulqa").mkdir()
    with gzip.open(folder / "truthfulqa" / "mc_task.json.gz", "wt", encoding="utf-8") as file:
        json.dump(TRUTHFULQA, file)
    (folder / "bbh").mkdir()
    for task, form in bbh.ANSWERS.items():
        rows = [{"input": f"{task} {i}", "target": BBH_TARGETS[form]} for i in range(2)]
        (folder / "bbh" / f"{task}.json").write_text(
            json.dumps({"canary": "x", "examples": rows}), "utf-8"
        )
    return folder


def right_answer(benchmark: str, doc: Any) -> str:
    """Return the right answer in the form that the prompt requests."""
    match benchmark:
        case "bbh":
            return f"We think. So the answer is {doc['target']}."
        case "mmlu":
            return f"We think. Therefore, the answer is ({doc['answer']})"
        case "drop":
            spans = doc["answers"][0]
            return "The answer is " + ", ".join(f"<{span}>" for span in spans)
        case "popqa":
            return min(
                doc["possible_answers"], key=len
            )  # its cap of 15 tokens is 15 bytes in these tests
        case "gsm8k":
            return f"We count. That makes {doc['answer'].rpartition('#### ')[2]}."
        case "math":
            return doc["solution"]
        case "humaneval" | "humaneval-plus":
            return f"Here is the completed function:\n\n```python\n{doc['prompt']}{doc['canonical_solution']}\n```"
        case _:
            return FOLLOWED[doc["key"]]
