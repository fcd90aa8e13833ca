"""The scores the paper reports: Mou, Wang, Zhang, "Deep Generalized Unfolding Networks for Image
Restoration", CVPR 2022, and its repository."""

# task -> test set -> model -> (PSNR in dB, SSIM). Compressive sensing: Set11_25 is at ratio 25.
PUBLISHED: dict[str, dict[str, dict[str, tuple[float, float]]]] = {
    "Deblurring": {
        "GoPro": {"DGUNet": (32.71, 0.960), "DGUNet_plus": (33.17, 0.963)},
        "HIDE": {"DGUNet": (30.96, 0.940), "DGUNet_plus": (31.40, 0.944)},
    },
    "Deraining": {
        "Test100": {"DGUNet": (30.32, 0.899), "DGUNet_plus": (30.86, 0.907)},
        "Rain100H": {"DGUNet": (30.66, 0.891), "DGUNet_plus": (31.06, 0.897)},
        "Rain100L": {"DGUNet": (37.42, 0.969), "DGUNet_plus": (38.25, 0.974)},
        "Test2800": {"DGUNet": (33.68, 0.938), "DGUNet_plus": (34.01, 0.942)},
        "Test1200": {"DGUNet": (33.23, 0.920), "DGUNet_plus": (33.08, 0.916)},
        "mean": {"DGUNet": (33.06, 0.923), "DGUNet_plus": (33.46, 0.927)},
    },
    "Denoising": {
        "SIDD": {"DGUNet": (39.88, 0.959), "DGUNet_plus": (39.91, 0.960)},
        "DND": {"DGUNet": (40.04, 0.956), "DGUNet_plus": (40.12, 0.957)},
    },
    "Compressive_Sensing": {
        "Set11_1": {"DGUNet": (22.09, 0.6096), "DGUNet_plus": (22.15, 0.6114)},
        "Set11_4": {"DGUNet": (26.84, 0.8249), "DGUNet_plus": (26.83, 0.8230)},
        "Set11_10": {"DGUNet": (31.07, 0.9123), "DGUNet_plus": (30.93, 0.9088)},
        "Set11_25": {"DGUNet": (36.11, 0.9611), "DGUNet_plus": (36.18, 0.9616)},
        "Set11_50": {"DGUNet": (41.22, 0.9836), "DGUNet_plus": (41.24, 0.9837)},
        "BSD68_1": {"DGUNet": (22.65, 0.5396), "DGUNet_plus": (22.70, 0.5406)},
        "BSD68_4": {"DGUNet": (25.55, 0.7008), "DGUNet_plus": (25.45, 0.6987)},
        "BSD68_10": {"DGUNet": (28.26, 0.8193), "DGUNet_plus": (28.14, 0.8165)},
        "BSD68_25": {"DGUNet": (31.90, 0.9155), "DGUNet_plus": (31.98, 0.9158)},
        "BSD68_50": {"DGUNet": (37.01, 0.9714), "DGUNet_plus": (37.04, 0.9718)},
    },
}


def published_scores(task: str, model: str) -> dict[str, tuple[float, float]]:
    """Return (PSNR in dB, SSIM) by test set for a model of a task; nothing for an unknown one.

    >>> published_scores("Deblurring", "DGUNet")["GoPro"]
    (32.71, 0.96)
    """
    by_set = PUBLISHED.get(task, {})
    return {name: by_model[model] for name, by_model in by_set.items() if model in by_model}
