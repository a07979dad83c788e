"""Writes tests/fixtures/adapter: a LoRA on fixtures/vicuna made and saved by peft, and the logits with it.

    pip install torch transformers==5.24.0 peft==0.21.2        # in an environment of its own
    python tests/make_adapter_fixture.py

A and B are random numbers; what peft computes with them in fp32 is the expected result.
"""
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

FIXTURES = Path(__file__).parent / "fixtures"
OUT = FIXTURES / "adapter"


@torch.no_grad()
def main():
    torch.manual_seed(0)
    shutil.rmtree(OUT, ignore_errors=True)
    model = LlamaForCausalLM.from_pretrained(FIXTURES / "vicuna", dtype=torch.float32)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(model, LoraConfig(r=3, lora_alpha=12, target_modules=targets, lora_dropout=0.05))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.copy_(0.3 * torch.randn_like(parameter))
    model.eval()
    model.peft_config["default"].base_model_name_or_path = "vicuna"
    model.save_pretrained(OUT)
    (OUT / "README.md").unlink()

    ids = torch.randint(3, 40, (2, 20))
    expected = {"input_ids": ids, "logits": model(input_ids=ids).logits}
    save_file(expected, FIXTURES / "adapter_expected.safetensors")


if __name__ == "__main__":
    main()
