"""Rendering of a synthetic face: skin, folds, hair and light, from the background forward.

`data.synthetic.generate` provides shape and appearance; `data.synthetic.canvas` paints.
"""

from collections.abc import Mapping

import cv2
import numpy as np

from data.synthetic import anatomy
from data.synthetic.anatomy import BROWS, EYES, HAIRLINE, JAW, LIPS, MOUTH, SKULL, Appearance
from data.synthetic.canvas import ROUNDED_SQUARE, WIDTH, Canvas, ellipse, enlarge, spline

OUTWARD = np.array([[-1, 1], [1, 1]])  # signs of x and y on the image-left and image-right side


class Portrait(Canvas):
    """A canvas with one face.

    `action_units` has the strength of each action unit by its number, about 0 to 1. Points [75, 2]
    are in pixels, in the attribute `points` in face units of `unit` pixels, as all other lengths.
    """

    def __init__(
        self,
        appearance: Appearance,
        action_units: Mapping[int, float],
        points: np.ndarray,
        unit: float,
        rng: np.random.Generator,
    ) -> None:
        super().__init__(unit, rng)
        self.appearance, self.au, self.points = appearance, action_units, points / unit
        self.skin = appearance.skin
        self.hair = appearance.hair + min(0.5 * appearance.hair, 0.12) * self.texture(30, 5)

    def render(self) -> np.ndarray:
        """Return the image, uint8 [48, 48]."""
        has_hair = self.appearance.style != "bald"
        self.paint_shoulders()
        if has_hair:
            self.paint_hair_behind()
        skin = self.paint_head()
        self.paint_beard(skin)
        self.paint_folds()
        self.paint_nose()
        self.paint_mouth()
        eyes = self.paint_eyes()
        self.paint_brows()
        # Wet eyes reflect light, so their shading is weaker.
        self.pixels *= 1 + skin * (1 - 0.75 * eyes) * (self.shading() - 1)
        if has_hair:
            self.paint_hair_in_front()
        if self.appearance.glasses:
            self.paint_glasses()
        if self.rng.random() < 0.1:
            self.paint_hand()
        return self.photograph()

    def paint_shoulders(self) -> None:
        sides = self.points[[4, 12]] * 0.8 + self.points[8] * 0.2
        neck = np.concatenate([sides, sides[::-1] + [0, 2]])
        self.paint(neck, self.skin * 0.55, blur=0.3)
        collar = [(-2.5, 0.6), (-0.8, 0.25), (0, 0.7), (0.8, 0.25), (2.5, 0.6), (2.5, 3), (-2.5, 3)]
        self.paint(self.points[8] + collar, self.rng.uniform(0.05, 0.95), blur=0.3)

    def skull(self, scale: float | np.ndarray) -> np.ndarray:
        """Return the outline of the skull [7, 2], scaled about the root of the nose."""
        return self.points[27] + (self.points[SKULL] - self.points[27]) * scale

    def paint_hair_behind(self) -> None:
        outline = self.skull(1.13)
        if self.appearance.style == "long":
            outline = np.stack([outline[0] + [-0.18, 2.2], *outline, outline[-1] + [0.18, 2.2]])
        self.paint(spline(outline), self.hair * 0.8, blur=0.3)

    def paint_hair_in_front(self) -> None:
        """Paint the hair over the forehead, and long hair over the edges of the cheeks."""
        style = self.appearance.style
        low, slant = HAIRLINE[style] + self.rng.normal(0, 0.03), self.rng.choice([-0.16, 0.16])
        if style != "parted":
            slant = 0.0
        line = [0.98, 0.92, low + 0.08 - slant, low, low + 0.08 + slant, 0.92, 0.98]
        ends = [self.points[[0, 16]] + OUTWARD * [0.02, 0.1]]
        if style == "long":
            locks = self.points[[3, 13]] + OUTWARD * [0.05, 0]
            ends += [locks, locks + OUTWARD * [0.3, 0.3]]
        left, right = np.stack(ends, axis=1)
        edge = spline(np.concatenate([left[::-1], self.skull(np.array(line)[:, None]), right]))
        self.paint(edge, 0.0, 0.25, width=0.12, blur=0.6)  # shadow
        self.paint(np.concatenate([edge, self.skull(1.16)[::-1]]), self.hair, blur=0.25)

    def paint_head(self) -> np.ndarray:
        """Paint ears and skin; return the mask of the skin."""
        ears = self.points[[0, 16]] * 0.7 + self.points[[1, 15]] * 0.3
        self.paint(ellipse(ears, [0.10, 0.26]), self.skin * 0.75, blur=0.2)
        head = self.mask(spline(self.points[JAW + SKULL[::-1]], closed=True), blur=0.25)
        self.pixels += (self.skin - self.pixels) * head
        return head

    def paint_beard(self, skin: np.ndarray) -> None:
        upper = self.points[[14, 54, 35, 33, 31, 48, 2]] + [0, 0.06]
        upper[[5, 1]] += OUTWARD * [0.12, -0.08]  # around the corners of the mouth
        outline = np.concatenate([self.points[2:15], upper])
        self.paint(outline, self.hair, 0.75 * self.appearance.beard, blur=1.1, mask=skin)

    def paint_folds(self) -> None:
        """Paint the folds, which deepen with age and with the action units that cause them."""
        au, age = self.au, self.appearance.age
        nose, corner, brow, temple = self.points[[[31, 35], [48, 54], [21, 22], [36, 45]]]

        def fold(*path, depth, width=0.04, blur=0.3):
            path = spline(np.stack(np.broadcast_arrays(*path), axis=-2))
            self.paint(path, self.skin * 0.45, depth, width=width, blur=blur)

        cheek = (nose + corner) / 2 + OUTWARD * [0.16, -0.06]
        depth = 0.08 + 0.25 * age + 0.35 * max(au[9], au[10], 0.7 * au[12])
        fold(nose + OUTWARD * [0.06, -0.08], cheek, corner + OUTWARD * [0.15, 0.02], depth=depth)
        depth = 0.1 * age + 0.5 * au[15]
        fold(corner + OUTWARD * [0.03, 0.05], corner + OUTWARD * [0.1, 0.2], depth=depth)
        frown = brow + OUTWARD * [-0.07, 0]
        fold(frown - [0, 0.15], frown + [0, 0.1], depth=0.6 * au[4] + 0.3 * au[9])
        below_eye = self.points[EYES[:, [0, 5, 3]]] + [0, 0.09]
        fold(*below_eye.swapaxes(0, 1), depth=0.1 + 0.2 * age + 0.25 * max(au[6], au[7]))
        rows = np.array([[-1], [0], [1]]) * [0, 1]
        crow_feet = temple[:, None] + OUTWARD[:, None] * [0.08, 0]
        ends = crow_feet + OUTWARD[:, None] * ([0.14, 0] + 0.08 * rows)
        fold(crow_feet, ends, depth=0.5 * au[6] * age, width=0.03, blur=0.2)
        root = self.points[27] + [0, 0.02] + 0.06 * rows
        fold(root - [0.1, 0], root + [0.1, 0], depth=0.55 * au[9], width=0.03, blur=0.2)
        forehead = self.points[[18, 20, 23, 25]][:, None] - [0, 0.36] + 0.14 * rows
        fold(*forehead, depth=0.45 * max(au[1], au[2]) * (0.4 + age))
        chin = self.points[[58, 57, 56]] + [0, 0.1]
        fold(*chin, depth=0.2 + 0.3 * au[17], width=0.07, blur=0.5)

    def paint_nose(self) -> None:
        dark = self.skin * 0.35
        wing = OUTWARD[:, None] * [(0.02, -0.16), (0.08, -0.08), (0.05, 0.02), (-0.05, 0.03)]
        self.paint(spline(self.points[[31, 35], None] + wing), dark, 0.35, width=0.05, blur=0.3)
        nostrils = self.points[[31, 35]] * 0.45 + self.points[[32, 34]] * 0.55
        self.paint(ellipse(nostrils, [0.065, 0.035]), dark * 0.5, 0.8, blur=0.25)
        self.paint(spline(self.points[31:36] + [0, 0.04]), dark, 0.3, width=0.06, blur=0.4)

    def paint_mouth(self) -> None:
        au, skin, points = self.au, self.skin, self.points
        lips = spline(points[LIPS], closed=True)
        self.paint(lips, skin * self.appearance.lips, 0.9, blur=0.2)
        upper, lower = points[60:65], points[[60, 67, 66, 65, 64]]
        gap = np.maximum(lower[:, 1] - upper[:, 1], 0)
        if gap.max() > 0.05:
            cavity = spline(points[MOUTH], closed=True)
            self.paint(cavity, 0.05, blur=0.1)
            visibility = np.clip(0.35 + max(au[10], au[12], au[20]) - 0.8 * au[26], 0.15, 0.95)
            edge = upper + np.minimum(0.6 * gap, 0.15)[:, None] * [0, 1]
            teeth = np.concatenate([upper, edge[::-1]])
            self.paint(teeth, 0.35 + 0.5 * skin, visibility, blur=0.15, mask=self.mask(cavity))
        opacity = 0.85 * np.clip(1 - gap.max() / 0.12, 0, 1)
        seam, width = spline((upper + lower) / 2), 0.05 + 0.03 * au[24]  # wider if lips are pressed
        self.paint(seam, skin * 0.2, opacity, width=width, blur=0.15)
        self.paint(ellipse(points[[48, 54]], 0.05), skin * 0.3, 0.5, blur=0.3)

    def paint_eyes(self) -> np.ndarray:
        """Paint both eyes; return their mask."""
        skin, eyes = self.skin, self.points[EYES]
        mask = self.mask(spline(eyes, closed=True))
        self.pixels += (0.5 + 0.4 * skin - self.pixels) * mask
        gaze = np.clip(self.rng.normal(0, [0.035, 0.012]), -0.06, 0.06)
        center = eyes.mean(axis=1) + gaze
        self.paint(ellipse(center, 0.095), self.appearance.iris, mask=mask)
        self.paint(ellipse(center, 0.045), 0.02, mask=mask)
        self.paint(ellipse(center - 0.035, 0.025), 0.95, mask=mask)  # highlight
        upper, lower = spline(eyes[:, :4]), spline(eyes[:, [3, 4, 5, 0]])
        self.paint(upper + [0, 0.03], 0.1, 0.4, width=0.05, blur=0.2, mask=mask)  # shadow
        self.paint(upper, 0.06, 0.85, width=0.045, blur=0.12)
        self.paint(upper - [0, 0.08], skin * 0.4, 0.45, width=0.03, blur=0.2)
        self.paint(lower, skin * 0.4, 0.5, width=0.025, blur=0.12)
        return mask

    def paint_brows(self) -> None:
        path = spline(self.points[BROWS]) + [0, 0.02]
        taper = np.interp(np.linspace(0, 1, path.shape[1]), [0, 0.35, 0.8, 1], [0.25, 0.9, 1, 0.7])
        half = taper[:, None] * [0, self.appearance.brow / 2]
        outline = np.concatenate([path - half, (path + half)[:, ::-1]], axis=1)
        self.paint(outline, min(self.appearance.hair, 0.5 * self.skin), 0.85, blur=0.25)

    def shading(self) -> np.ndarray:
        """Return the light that the skin reflects, about 1, in the shape of `pixels`."""
        grid = (np.arange(WIDTH) / self.unit).astype(np.float32)  # smooth, so one value per pixel
        outline = self.points[JAW + SKULL]
        low, high = outline.min(axis=0), outline.max(axis=0)
        x, y = (((grid - c) / r) ** 2 for c, r in zip((low + high) / 2, (high - low) * 0.52))
        dome = 0.85 * np.sqrt(np.maximum(1 - x - y[:, None], 0.02))
        centers = anatomy.RELIEF_WEIGHTS @ self.points + anatomy.RELIEF_OFFSETS  # [bumps, 2]
        bumps = np.exp(-(((grid - centers[..., None]) / anatomy.RELIEF_RADII[..., None]) ** 2))
        cheeks = 1 + anatomy.IS_CHEEK * (0.6 * self.au[6] + 0.3 * self.au[12])  # raised by a smile
        height = dome + (bumps[:, 1].T * (anatomy.RELIEF_HEIGHTS * cheeks)) @ bumps[:, 0]
        height = height.astype(np.float32)
        slope_y, slope_x = np.gradient(height, grid[1])
        east, north = self.rng.normal(0, 0.45), abs(self.rng.normal(0.45, 0.3))  # mostly from above
        facing = 1 - np.float32(east) * slope_x + np.float32(north) * slope_y  # Lambert's law
        facing = np.maximum(facing, 0) / np.sqrt(1 + slope_x**2 + slope_y**2)
        ambient = np.float32(self.rng.uniform(0.3, 0.6))
        occlusion = cv2.GaussianBlur(height, (0, 0), 0.14 * self.unit) - height
        light = ambient + (1 - ambient) * facing - 1.5 * np.maximum(occlusion, 0)
        return enlarge(np.clip(light, 0.1, 1.6))

    def paint_glasses(self) -> None:
        rims = ellipse(self.points[EYES].mean(axis=1) + [0, 0.03], [0.34, 0.25], ROUNDED_SQUARE)
        self.paint(rims, 0.9, 0.08)
        bridge = [rims[0, 0], self.points[27], rims[1, 12]]
        arms = [[self.points[0], rims[0, 12]], [rims[1, 0], self.points[16]]]
        closed = np.concatenate([rims, rims[:, :1]], axis=1)
        for path, width in ((closed, 0.05), (bridge, 0.045), (arms, 0.045)):
            self.paint(path, 0.08, self.appearance.glasses, width=width, blur=0.1)

    def paint_hand(self) -> None:
        """Paint fingers over the cheek, the chin or the mouth, as in many images of FER2013."""
        target = self.points[self.rng.choice([3, 5, 8, 11, 13, 48, 54])]
        away = (target - self.points[30]) / np.linalg.norm(target - self.points[30])
        across = away[::-1] * [-1, 1]
        for finger in range(-2, 2):
            tip = target + 0.24 * finger * across + 0.05 * abs(finger) * away
            path = [tip, tip + 2.5 * away]
            self.paint(path, self.skin * 0.35, 0.6, width=0.27, blur=0.4)  # shadow
            self.paint(path, self.skin * 0.95, width=0.21, blur=0.25)
