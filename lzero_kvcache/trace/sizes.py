def parse_sizes(text: str) -> list[float]:
    """
    Sizes as a command line has them, e.g. '5%,10%,...,100%', as rising shares of the nodes of a search; a ValueError if
    one is no percentage above 0, or '...' has not two before and one after it.
    """
    parts = [part.strip() for part in text.split(',')]
    percents: list[float] = []
    for place, part in enumerate(parts):
        if part != '...':
            percents.append(_percentage(part))
            continue
        if place < 2 or place + 1 == len(parts):
            raise ValueError(f'--sizes is {text!r}: "..." needs two sizes before it and one after it: 5%,10%,...,100%')
        last, step = _percentage(parts[place + 1]), percents[-1] - percents[-2]
        if step <= 0 or (last - percents[-1]) / step > 1000:
            raise ValueError(f'--sizes is {text!r}: the sizes before "..." must rise, to 1000 sizes at most')
        while percents[-1] + step < last - step / 1000:
            percents.append(percents[-1] + step)
    return [percent / 100 for percent in sorted(set(percents))]


def _percentage(part: str) -> float:
    try:
        percent = float(part.removesuffix('%')) if part.endswith('%') else 0.0
    except ValueError:
        percent = 0.0
    if not 0 < percent <= 1000:
        raise ValueError(f'--sizes has {part!r}: allowed is a percentage of the nodes of a search such as 25%')
    return percent
