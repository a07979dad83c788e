"""An adapter that minillava saves, opened by peft: the same logits as merged here. Not collected by pytest.

    pip install torch transformers==5.24.0 peft==0.21.2        # in an environment of its own
    python tests/check_peft.py
"""
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from transformers import LlamaForCausalLM

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from minillava.checkpoint import load_llava  # noqa: E402
from minillava.weights.adapters import Adapter, save_adapter  # noqa: E402

FIXTURES = ROOT / "tests" / "fixtures"


@torch.no_grad()
def main():
    warnings.filterwarnings("error", message=".*missing adapter keys.*")
    torch.manual_seed(0)
    parts = {"vision": FIXTURES / "clip", "device": "cpu", "dtype": torch.float32}
    model, _ = load_llava(FIXTURES / "llava", **parts)
    linears = {name: module.weight.shape for name, module in model.language_model.layers.named_modules()
               if isinstance(module, torch.nn.Linear)}
    matrices = {f"language_model.layers.{name}": (0.3 * torch.randn(3, width), 0.3 * torch.randn(out, 3))
                for name, (out, width) in linears.items()}

    with tempfile.TemporaryDirectory() as folder:
        save_adapter(Adapter(3, 12.0, matrices, {}, base="vicuna"), model.config, folder)
        ours, _ = load_llava(folder, base=FIXTURES / "llava", **parts)
        theirs = LlamaForCausalLM.from_pretrained(FIXTURES / "vicuna", dtype=torch.float32)
        theirs = PeftModel.from_pretrained(theirs, folder).eval()

    ids = torch.randint(3, 40, (2, 20))
    logits, expected, plain = ours(ids), theirs(input_ids=ids).logits, model(ids)
    difference = ((logits - expected).abs().max() / expected.abs().max()).item()
    print(f"relative difference {difference:.1e}; the adapter itself changes {(plain - logits).abs().max():.1f}")
    sys.exit(difference > 1e-5)


if __name__ == "__main__":
    main()
