"""`sqat convert` for pretrained models, and `sqat uptrain`, as a user meets them."""

import json
from pathlib import Path

import pytest
import transformers
from transformers import AutoModelForCausalLM

from sqat.convert.files import quiet
from sqat.data.tokenizer import train_tokenizer

TEXT = "\n\n".join(f"The cat number {n} sat on mat {n * 7}. It was happy, and so it purred." for n in range(210))
UPTRAIN = ["--teacher", "pretrained", "--data", "text.txt", "--out", "run", "--batch-size", "3", "--context", "29"]
UPTRAIN += ["--device", "cpu", "--set", "train.tensorboard=false"]


@pytest.fixture(autouse=True)
def _pretrained(sqat):
    Path("text.txt").write_text(TEXT)
    sizes = {"vocab_size": 307, "hidden_size": 23, "intermediate_size": 13, "num_hidden_layers": 2, "head_dim": 10}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 3}
    config = transformers.Qwen3Config(**sizes, **heads, max_position_embeddings=61, bos_token_id=2, eos_token_id=3)
    with quiet():
        AutoModelForCausalLM.from_config(config).save_pretrained("pretrained")
    train_tokenizer(TEXT.split("\n\n"), 307).save("pretrained")


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("fit", "--calibrate text.txt --calibrate stories:31"),
        ("mean", ""),
        ("select", "--score norm"),
        ("cluster", "--score activation --calibrate text.txt:31"),
    ],
)
def test_convert_writes_a_stock_checkpoint(method, options, sqat):
    command = f"convert pretrained --query-heads 3 --layers 0-1 --out half --method {method} {options}"
    code, out, err = sqat(*command.split())
    assert code == 0, err
    assert "query heads 6 -> 3 (50%)" in " ".join(out.split())
    assert f"pretrained written to half with 3 query heads ({method})" in out
    model = AutoModelForCausalLM.from_pretrained("half")
    assert (model.config.num_attention_heads, model.config.num_key_value_heads, model.config.head_dim) == (3, 3, 10)
    card = Path("half/README.md").read_text()
    assert "Made by `sqat convert` from `pretrained`, whose 6 query heads became 3" in card
    assert Path("half/tokenizer.json").read_bytes() == Path("pretrained/tokenizer.json").read_bytes()


def test_some_layers_alone_go_to_transformers(sqat):
    command = "convert pretrained --query-heads 3 --layers 1-1 --to transformers --method mean --out partly"
    code, out, err = sqat(*command.split())
    assert code == 0, err
    assert "pretrained written to partly with 3 query heads in layers 1-1 (mean)" in out
    model = AutoModelForCausalLM.from_pretrained("partly")
    assert [layer.self_attn.q_proj.out_features for layer in model.model.layers] == [60, 30]
    assert sorted(path.name for path in Path("partly").glob("*.py")) == ["modeling_mixed_heads.py"]
    code, _, err = sqat("uptrain", "partly", "--tokens", "200", *UPTRAIN)
    assert code == 0, err
    assert len(list(Path("run/checkpoints").glob("step-*/modeling_mixed_heads.py"))) >= 1


def test_convert_verifies(sqat):
    command = [
        "convert",
        "pretrained",
        "--query-heads",
        "2",
        "--method",
        "mean",
        "--verify",
        "stories:5",
        "--context",
        "19",
    ]
    code, out, _ = sqat(*command, "--out", "third")
    assert (code, "perplexity" in out) == (0, True)
    record = json.loads(Path("third/conversion.json").read_text())
    assert record["verification"]["text"] == "stories:5"
    assert record["base_model"] is None  # a folder has no name on the Hub
    card = Path("third/README.md").read_text()
    assert f"| perplexity after | {record['verification']['perplexity_after']:.2f} |" in card
    assert f"| the model it was made of | 6 | 3 | {record['before']['parameters']:,} |" in card
    assert record["after"]["kv_heads"] == 1
    assert record["merged_heads"] == [[[0, 1, 2], [3, 4, 5]]] * 2


def test_uptrain_goes_on_where_it_was_stopped(sqat):
    assert sqat("convert", "pretrained", "--query-heads", "3", "--method", "mean", "--out", "half")[0] == 0
    command = ("uptrain", "half", "--tokens", "700", *UPTRAIN)
    code, out, _ = sqat(*command)
    assert (code, "Best checkpoint: run/checkpoints/step-" in out) == (0, True)
    code, out, err = sqat(*command)
    assert (code, "holds a run already: resume it (--resume)" in err) == (1, True)
    assert sqat(*command, "--resume")[0] == 0
    assert json.loads(Path("run/metrics.jsonl").read_text().splitlines()[0])["kl"] > 0
    for checkpoint in Path("run/checkpoints").iterdir():  # they tell where they come from
        assert (checkpoint / "conversion.json").read_bytes() == Path("half/conversion.json").read_bytes()


CONVERT = "convert pretrained --out x "
HALF = CONVERT + "--query-heads 3 "


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (CONVERT + "--method mean", "--query-heads is missing, but must be the number to keep where --method is given"),
        (CONVERT + "--context 9", "--query-heads is missing, but must be the number to keep where --context is given"),
        (CONVERT + "--query-heads 7", "query_heads is 7, but must be 1 to 6"),
        (HALF + "--layout sqat", "--layout is 'sqat', but goes without --query-heads"),
        (HALF + "--out text.txt", "--out is text.txt, which exists and is not empty"),
        (HALF + "--out pretrained", "choose a new or an empty folder"),
        (HALF + "--layers 0-0", 'layers is 0-0, but must be 0-1 for to "stock": a qwen3 checkpoint holds one number'),
        (HALF + "--method select", '--calibrate is missing, but method "select" by score "activation" needs text'),
        (
            HALF,
            '--calibrate is missing, but method "fit" needs text (--calibrate DATA[:n]); method "mean" does without',
        ),
        (
            HALF + "--method mean --calibrate text.txt",
            "--calibrate is text.txt, but goes with --method fit, or select and cluster",
        ),
        ("uptrain pretrained", "--tokens is missing, but must be the number of tokens"),
        ("uptrain ./nowhere --tokens 5", "'./nowhere' is no local folder"),
        ("uptrain pretrained --tokens 5 --set train.epoch=1", "did you mean 'epochs'?"),
    ],
)
def test_wrong_input_is_one_clear_line(command, message, sqat):
    code, _, err = sqat(*command.split())
    assert (code, message in err, "Traceback" in err) == (1, True, False), err
    assert not Path("x").exists()
