"""Weights from one form into another.

    python -m minillava.weights apply-delta --base LLAMA --delta DELTA --out DIR
    python -m minillava.weights convert --to llava|llava-hf --model LLAVA [--vision CLIP] --out DIR
    python -m minillava.weights merge --base LLAVA --adapter LORA --out DIR
    python -m minillava.weights quantize --model LLAVA [--vision CLIP] --to int8|int4 --out DIR
"""
import argparse
from pathlib import Path

from minillava.checkpoint import load_llava, save_llava
from minillava.terminal import errors_in_one_line, printable
from minillava.weights.adapters import base_folder, is_adapter, read_adapter
from minillava.weights.allocator import keep_freed_memory
from minillava.weights.deltas import apply_delta
from minillava.weights.folders import refuse_to_lose
from minillava.weights.quantize import KINDS, save_quantized
from minillava.weights.saving import save_original_llava

SAVE = {"llava": save_original_llava, "llava-hf": save_llava}


def main():
    args = make_parser().parse_args()
    with errors_in_one_line():
        if args.command == "apply-delta":
            refuse_to_lose(args.out, args.base, args.delta)
            apply_delta(args.base, args.delta, args.out)
        elif args.command == "convert":
            convert(args.model, args.vision, args.to, args.out)
        elif args.command == "merge":
            merge(args.base, args.adapter, args.vision, args.out)
        elif args.command == "quantize":
            quantize(args.model, args.vision, args.to, args.out)
        print(f"written: {printable(args.out)}")


def make_parser():
    parser = argparse.ArgumentParser(
        prog="python -m minillava.weights", description="Weights from one form into another.")
    commands = parser.add_subparsers(dest="command", required=True)
    delta = commands.add_parser("apply-delta", help="LLaMA + a published LLaVA delta = LLaVA")
    layout = commands.add_parser("convert", help="a LLaVA into another program's layout")
    bits = commands.add_parser("quantize", help="a LLaVA with its Llama in 8 or 4 bits")
    lora = commands.add_parser("merge", help="a LLaVA + its LoRA = a plain LLaVA")

    delta.add_argument("--base", required=True, metavar="DIR", help="folder of the LLaMA")
    delta.add_argument("--delta", required=True, metavar="DIR", help="folder of the delta")
    layout.add_argument("--to", required=True, choices=sorted(SAVE),
                        help="llava: for the official code; llava-hf: for transformers")
    bits.add_argument("--to", required=True, choices=KINDS)
    lora.add_argument("--base", metavar="DIR", help="folder of the LLaVA (or Vicuna) that was "
                      "trained on (default: the one that the adapter names)")
    lora.add_argument("--adapter", required=True, metavar="DIR", help="folder of the adapter")

    for command in (layout, bits):
        command.add_argument("--model", required=True, metavar="DIR", help="folder of the LLaVA")
    for command in (layout, bits, lora):
        command.add_argument("--vision", metavar="DIR",
                             help="folder of a CLIP, where the model has none")
    for command in (delta, layout, bits, lora):
        command.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    return parser


def convert(folder, vision, layout, out):
    base = base_folder(folder, read_adapter(folder), None) if is_adapter(folder) else None
    refuse_to_lose(out, folder, base, vision)
    model, tokenizer = load_llava(folder, vision=vision, device="cpu")
    SAVE[layout](model, tokenizer, out)
    if layout == "llava" and not (Path(out) / "tokenizer.model").exists():
        print("note: the official code reads a tokenizer.model only, and this model has none")


def merge(base, adapter, vision, out):
    if not is_adapter(adapter):
        raise ValueError(f"{adapter} holds no adapter: there is no adapter_config.json")
    base = base_folder(adapter, read_adapter(adapter), base)
    refuse_to_lose(out, adapter, base, vision)
    model, tokenizer = load_llava(adapter, base=base, vision=vision, device="cpu")
    save_llava(model, tokenizer, out)


def quantize(folder, vision, kind, out):
    if is_adapter(folder):
        raise ValueError(f"{folder} is an adapter: merge it with its base first "
                         "(python -m minillava.weights merge)")
    refuse_to_lose(out, folder, vision)
    keep_freed_memory()
    model, tokenizer = load_llava(folder, vision=vision, device="cpu", quantize=kind)
    save_quantized(model, tokenizer, out, kind)


if __name__ == "__main__":
    main()
