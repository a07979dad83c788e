"""--check-data: every sample is read once, and what is wrong with it is named."""
import sys

from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from minillava.conversation import IMAGE, colored_by_loss
from minillava.images import load_image
from minillava.terminal import color_depth, printable, show_picture


class Checked(Dataset):
    """item -> what is wrong with the sample, or None."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        sample = self.data.sample(index)
        name = sample.get("id", index) if isinstance(sample, dict) else index
        try:
            item = self.data.prepare(sample)
        except (OSError, ValueError) as error:
            return f"{name}: {error}"
        if item["cut"]:
            return f"{name}: too long, cut after {self.data.max_length} tokens"
        if item["ignored"]:
            return f"{name}: no turn has {IMAGE}, so its picture is ignored"
        return None


def show_samples(data, tokenizer, count=3):
    """The first samples as they will be trained: the picture, and in green what is learned."""
    colors = color_depth() > 0
    legend = "green is learned, grey is not" if colors else "what is learned is in brackets"
    for index in range(min(count, len(data))):
        sample = data.sample(index)
        try:
            item = data.prepare(sample)
            if len(item["pixels"]):
                show_picture(load_image(data.images / sample["image"]))
        except (OSError, ValueError):
            continue  # check_data will name it
        ids = item["input_ids"].tolist()
        labels = item["labels"].tolist()
        print(f"{printable(item['id'], keep='')}, {len(ids)} tokens; {legend}:")
        print(colored_by_loss(ids, labels, tokenizer, colors), end="\n\n")


def check_data(data, workers):
    """Reads every sample once and prints what is wrong with which; returns how many are."""
    bad = 0
    lines = DataLoader(Checked(data), batch_size=None, num_workers=workers)
    for line in tqdm(lines, desc="samples"):
        if line:
            bad += 1
            tqdm.write(printable(line, keep=""), file=sys.stdout)
    print(f"{len(data)} samples, {bad} of them named above")
    return bad
