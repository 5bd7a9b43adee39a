"""Files with the votes of FER+'s annotators."""

HEADER = (
    "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"
)


def write_votes(path, dataset, votes):
    """Write votes [N, 10] in the order of the columns of the file."""
    rows = [
        f"{split},f{i}.png,{','.join(map(str, counts))}"
        for i, (split, counts) in enumerate(zip(dataset.split, votes))
    ]
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    return path
