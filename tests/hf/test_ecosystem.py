"""What people use transformers' models through: pipelines, its trainer, adapters."""

from copy import deepcopy

import pytest
import torch
from transformers import Trainer, TrainingArguments, pipeline

from sqat.generate import SamplingConfig, generate
from sqat.hf import from_decoder
from sqat.hf.tokenizer import to_transformers


def test_pipeline_writes_what_we_write(tiny_model, tokenizer):
    core = tiny_model(vocab_size=303)
    write = pipeline("text-generation", model=from_decoder(core), tokenizer=to_transformers(tokenizer, with_end=False))
    write.tokenizer.padding_side = "left"
    prompts = ["Once upon a time", "A cat", "The big red ball"]
    answers = write(prompts, batch_size=3, max_new_tokens=8, do_sample=False, return_full_text=False)
    expected = generate(core, tokenizer, prompts, SamplingConfig(temperature=0, max_tokens=8))
    assert [answer[0]["generated_text"] for answer in answers] == [answer.text for answer in expected]


def test_tokenizer_with_and_without_end(tokenizer):
    plain = tokenizer.encode("a cat")
    assert to_transformers(tokenizer)("a cat").input_ids == [2, *plain, 3]
    without = to_transformers(tokenizer, with_end=False)
    assert without("a cat").input_ids == [2, *plain]
    assert without.decode(without("a cat").input_ids, skip_special_tokens=True) == "a cat"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trainer_lowers_the_loss_and_goes_on(checkpointing, tiny_model, tokens, tmp_path):
    model = from_decoder(tiny_model(moe=True)).train()
    model.config.output_router_logits = True
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=3,
        learning_rate=0.01,
        gradient_checkpointing=checkpointing,
        logging_steps=1,
        save_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[1] < losses[0]
    other = from_decoder(tiny_model(moe=True))
    other.config.output_router_logits = True
    again = Trainer(model=other, args=arguments, train_dataset=rows)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(other.get_parameter(name), parameter)


def test_accumulating_weighs_the_router_loss_by_each_micro_batchs_share(tiny_model, tokens, tmp_path):
    """Four batches of one row are one batch of four; the rows are alike, since the router loss is not additive."""
    core, weights = tiny_model(moe=True), []
    row = {"input_ids": tokens[0], "labels": torch.where(torch.arange(len(tokens[0])) < 3, -100, tokens[0])}
    for batch_size, accumulation in ((4, 1), (1, 4)):
        model = from_decoder(deepcopy(core))
        model.config.output_router_logits, model.config.router_aux_loss_coef = True, 1.0
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=1,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            learning_rate=0.1,
            optim="sgd",
            report_to=[],
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
        )
        Trainer(model=model, args=arguments, train_dataset=[row] * 4).train()
        weights.append(dict(model.named_parameters()))
    for name, parameter in weights[0].items():
        torch.testing.assert_close(weights[1][name], parameter)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "experts"])
def test_lora_trains_adapters_alone_and_merges(targets, tiny_model, tokens, tmp_path):
    peft = pytest.importorskip("peft", reason="peft is an optional extra: pip install peft")
    core = tiny_model(moe=True)
    names = {"target_parameters": ["feedforward.fc1_weight"]} if targets == "experts" else {"target_modules": targets}
    model = peft.get_peft_model(from_decoder(core), peft.LoraConfig(task_type="CAUSAL_LM", r=3, **names))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora" in name for name in trained)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.3)
    losses = []
    for _ in range(3):
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    model.eval()
    expected = model(input_ids=tokens).logits
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(from_decoder(core), tmp_path)
    torch.testing.assert_close(loaded(input_ids=tokens).logits, expected)
    torch.testing.assert_close(model.merge_and_unload()(tokens).logits, expected, rtol=1e-4, atol=1e-5)


def test_lm_eval_scores_as_we_do(tiny_model, tokenizer):
    pytest.importorskip("lm_eval", reason="lm_eval is in the extra 'interop'")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    core = tiny_model(vocab_size=303, context_length=67)
    there = to_transformers(tokenizer, with_end=False)
    lm = HFLM(pretrained=from_decoder(core), tokenizer=there, batch_size=3, device="cpu")
    pairs = [("Once upon a", " time"), ("A cat", " sat on the mat"), ("", "The dog")]
    scores = lm.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in pairs], disable_tqdm=True)
    for (context, answer), (score, _) in zip(pairs, scores, strict=True):
        before = [2, *tokenizer.encode(context)]
        ids = before + tokenizer.encode(context + answer)[len(before) - 1 :]
        with torch.no_grad():
            log_probs = core(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
        expected = log_probs[len(before) - 1 : -1].gather(1, torch.tensor(ids[len(before) :]).unsqueeze(1)).sum()
        assert score == pytest.approx(expected.item(), abs=1e-4)
    settings = {"until": ["\n"], "max_gen_toks": 9, "do_sample": False}
    texts = lm.generate_until([Instance("generate_until", {}, ("A cat", settings), 0)], disable_tqdm=True)
    assert (
        texts[0] == generate(core, tokenizer, "A cat", SamplingConfig(temperature=0, max_tokens=9, stop=("\n",))).text
    )
