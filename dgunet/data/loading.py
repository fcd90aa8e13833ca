"""Batches of a data set, made by worker processes."""

from collections.abc import Iterator

from torch.utils.data import DataLoader, Dataset, default_collate

from dgunet.base.errors import InputError


class Batches:
    """Iterates over the batches of a data set, made with the options of a `DataLoader`. A worker of
    that turns an error into one whose message is a traceback. Here an `InputError` comes out of the
    worker as a value, and is raised in the process that iterates."""

    def __init__(self, data: Dataset, **options):
        self.loader = DataLoader(_ErrorsAsValues(data), collate_fn=_collate, **options)

    def __iter__(self) -> Iterator[dict]:
        for batch in self.loader:
            if isinstance(batch, InputError):
                raise batch
            yield batch


class _ErrorsAsValues(Dataset):
    def __init__(self, data: Dataset):
        self.data = data

    def __getitem__(self, key) -> dict | InputError:
        try:
            return self.data[key]
        except InputError as error:
            return error


def _collate(samples: list[dict | InputError]) -> dict | InputError:
    errors = [sample for sample in samples if isinstance(sample, InputError)]
    return errors[0] if errors else default_collate(samples)
