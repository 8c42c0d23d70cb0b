"""Builds data/furniture.npz: coloured point clouds of furniture models, sampled once from meshes.

The meshes come with Debian's package `sweethome3d-furniture` (bookworm, 1.8-1). To run it again:

    apt-get download sweethome3d-furniture && dpkg -x sweethome3d-furniture_*.deb unpacked
    pip install trimesh
    python -m helpers.data.make_furniture unpacked

The same package, library versions and seed give the same bytes. trimesh is not a dependency of
the collection: only this script needs it.
"""

from __future__ import annotations

import html
import io
import re
import sys
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np

from helpers.data import furniture
from helpers.files import write_atomic

# library: the licence that its catalogue and Debian's copyright file state
LIBRARIES = {
    "BlendSwap-CC-0": "CC0",
    "BlendSwap-CC-BY": "CC BY 3.0",
    "KatorLegaz": "CC BY 3.0 US",
    "Scopia": "CC BY 3.0",
}
# class: models as <initial of the library's short name>/<identifier in the catalogue>
SHORT = {"0": "BlendSwap-CC-0", "B": "BlendSwap-CC-BY", "K": "KatorLegaz", "S": "Scopia"}
MODELS = {
    "armchair": "0/armchair2 0/modernArmchair 0/winchesterArmchair B/armchair1 B/fotel "
    "B/armChair2 K/mid-century-chair S/armchair S/armchair2 S/rattanArmchair",
    "bag": "0/briefcase B/backpack B/suitcase 0/handbag",
    "ball": "0/basketball B/ballonFoot",
    "bathtub": "B/bath_jay_hardy S/corner_bathtub S/islandBath",
    "bed": "0/bed1 0/bed2 0/bedWithTexture B/juniorBed B/lettoCloud S/bed1 S/iron_bed "
    "S/children_bed",
    "bench": "0/bench 0/pianoBench K/bench K/painted-bench",
    "bin": "0/dustbin K/bullet-trash-can K/recycling-bin S/clothes-basket S/shopping-basket",
    "box": "0/ammoBox 0/crate 0/box S/cardboard-box S/open-cardboard-box K/trunk-large",
    "cabinet": "0/cupboard 0/drawersCabinet 0/lowerCabinet B/kitchenDrawersCabinet "
    "B/kitchenLowerCabinet B/chest B/dresserWithDrawers K/filing-cabinet 0/bedsideTable2 "
    "B/bedsideTable",
    "chair": "0/oakChair 0/plasticChair 0/sillaBlanca 0/antiqueChair 0/chairWithCushion "
    "B/cafe_set_tonon_chair B/ella_chair_f B/chair3 K/dining-chair K/office-chair S/chair3 "
    "S/office_chair S/tubular_chair S/plastic_chair",
    "computer": "K/apple-imac-1998 S/apple_pc B/laptop K/apple-ibook-2001",
    "desk": "0/desk 0/lbDesk B/biurko3 B/simpleDesk B/officeTable S/kids_desk_table "
    "S/kids_wooden_desk",
    "door": "K/exterior-door-01 K/exterior-door-02 K/exterior-door-03 S/puerta S/door",
    "fridge": "0/refrigerator 0/largeFridge K/fridge",
    "lamp": "0/desklamp B/lamp K/pedestal-vase-lamp S/desk_lamp1 S/desk_lamp2 S/little_lamp1 "
    "S/little_lamp2 S/little_lamp3 S/table_lamp S/livingroom_lamp1 S/living_lamp",
    "oven": "0/doubleOven B/largeStove K/propane-stove",
    "plant": "0/littlePlant 0/augalas 0/decorativePlant 0/orchids 0/plant B/mediumIndoorPlant "
    "B/yuccaPlant B/decorativePlant B/spider_plant B/white_lily S/maceta "
    "S/calla_lily_with_roses S/ficus",
    "shelf": "0/bookcase 0/shelves 0/verticalShelves B/bookcase K/utility-shelving "
    "K/full-bookcase S/dining_room S/kids_shelves",
    "sink": "0/washbasin B/kitchenSink B/washbasin_jay_hardy 0/sinkCabinet",
    "sofa": "0/L_shaped_sofa 0/sofa 0/couch 0/winchesterSofa B/sofa2 B/sofa3 B/couch3 "
    "K/mid-century-sofa S/clear_sofa S/burlap_sofa S/leather_sofa",
    "stool": "0/silla2 0/stool2 B/green_stool K/bar-stool S/kitchen_stool",
    "table": "0/oakTable 0/table B/cafe_set_mota_table B/table K/folding-table S/black_table "
    "S/wooden_table_office S/metal_glass_table S/white_kitchen_table S/table-on-trestles "
    "S/round-table B/coffeeTable S/saloon_table S/coffee-table2",
    "television": "0/led_tv S/tv S/wall-flat-tv",
    "toilet": "0/toiletsUnit B/toilets_unit_jay_hardy B/modernToilet",
    "vase": "S/old_jar S/vase1 S/vase2 S/vase3 S/jar S/vase5",
    "wardrobe": "0/wardrobeWithSlidingDoors B/wardrobe B/wardrobe2 S/wardrobe1",
    "washer": "B/washing_machine S/clothes_washing_machine S/dryer_machine",
    "window": "K/window-01 S/turn-window S/window_2x1_medium_with_large_pane S/window_2x3_regular",
}


def catalogue(archive: zipfile.ZipFile) -> dict[str, dict[str, str]]:
    """The entries of a library's properties file: identifier after '#' -> its fields."""
    text = archive.read("PluginFurnitureCatalog.properties").decode("latin-1")
    rows: dict[str, dict[str, str]] = {}
    for key, number, value in re.findall(r"^(\w+)#(\d+)=(.*)$", text, re.M):
        rows.setdefault(number, {})[key] = value.strip()
    return {row["id"].split("#", 1)[1]: row for row in rows.values()}


def licence(archive: zipfile.ZipFile, row: dict[str, str], default: str) -> str:
    """The licence of one model: its own file where it has one, otherwise that of its library.

    Raises ValueError for one that is neither CC0 nor CC BY.
    """
    folder = str(PurePosixPath(row["model"].lstrip("/")).parent) + "/"
    names = [n for n in archive.namelist() if n.startswith(folder) and "licen" in n.lower()]
    text = " ".join(html.unescape(archive.read(name).decode("latin-1")) for name in names)
    link = re.search(r"creativecommons\.org/licenses/([\w-]+)/", text)
    if "ShareAlike" in text or "NonCommercial" in text or (link and link[1] != "by"):
        raise ValueError(f"{row['id']}: neither CC0 nor CC BY")
    return "CC BY 3.0" if default == "CC0" and link else default


def mesh(archive: zipfile.ZipFile, row: dict[str, str]) -> tuple[np.ndarray, np.ndarray, list]:
    """Triangles [F, 3, 3] in metres (z up, front towards -y, standing on 0) and their colours.

    The colours are one function per material part: (faces, barycentric weights) -> rgb [n, 3].
    """
    import trimesh

    resolver = _Resolver(archive, str(PurePosixPath(row["model"].lstrip("/")).parent))
    content = archive.read(row["model"].lstrip("/"))
    scene = trimesh.load(
        io.BytesIO(content), file_type="obj", resolver=resolver, process=False, force="scene"
    )
    parts = [part for part in scene.dump() if len(getattr(part, "faces", ()))]
    triangles = np.concatenate([part.triangles for part in parts])
    if "modelRotation" in row:
        triangles = triangles @ np.array(row["modelRotation"].split(), float).reshape(3, 3).T
    low, high = triangles.min((0, 1)), triangles.max((0, 1))
    size = np.array([float(row[key]) / 100 for key in ("width", "height", "depth")])
    triangles = (triangles - (low + high) / 2) / np.maximum(high - low, 1e-9) * size
    triangles = np.stack(
        [triangles[..., 0], -triangles[..., 2], triangles[..., 1] + size[1] / 2], -1
    )
    sizes = np.cumsum([0] + [len(part.faces) for part in parts])
    return triangles, sizes, [_painter(part) for part in parts]


class _Resolver:
    """Lets trimesh read the materials and textures beside a model inside the archive."""

    def __init__(self, archive: zipfile.ZipFile, folder: str):
        self.archive, self.folder = archive, folder

    def get(self, name: str) -> bytes:
        return self.archive.read(f"{self.folder}/{name.strip()}")

    def get_or_none(self, name: str) -> bytes | None:
        try:
            return self.get(name)
        except KeyError:
            return None

    def __getitem__(self, name: str) -> bytes:
        return self.get(name)


def _painter(part):
    """(faces [n], weights [n, 3]) -> rgb in [0, 1] of a part, from its texture or its material."""
    material = getattr(part.visual, "material", None)
    plain = np.asarray(getattr(material, "diffuse", [153, 153, 153, 255]), float)[:3] / 255
    uv, image = getattr(part.visual, "uv", None), getattr(material, "image", None)
    if uv is None or image is None or len(uv) != len(part.vertices):
        return lambda faces, weights: np.broadcast_to(plain, (len(faces), 3))
    texture = np.asarray(image.convert("RGB"), float) / 255
    height, width = texture.shape[:2]

    def paint(faces, weights):
        at = np.einsum("nk,nkc->nc", weights, uv[part.faces[faces]])
        at = np.nan_to_num(at) % 1.0
        column = np.minimum((at[:, 0] * width).astype(int), width - 1)
        line = np.minimum(((1 - at[:, 1]) * height).astype(int), height - 1)
        return texture[line, column]

    return paint


def sample(triangles, sizes, painters, count: int, seed: int):
    """`count` points seen from outside: xyz, outward normals, rgb [count, 3], visible area in m^2.

    48 rays leave both sides of every candidate; a side counts as seen when 3 of them escape. A
    sheet without thickness is seen from both sides: each of its points takes one of them.
    """
    import open3d as o3d

    rng = np.random.default_rng(seed)
    cross = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    area = np.linalg.norm(cross, axis=1)
    draws = 6 * count
    faces = np.searchsorted(np.cumsum(area) / area.sum(), rng.random(draws)).clip(0, len(area) - 1)
    weights = rng.dirichlet(np.ones(3), draws)
    xyz = np.einsum("nk,nkc->nc", weights, triangles[faces])
    normals = cross[faces] / np.maximum(area[faces, None], 1e-12)
    scene = o3d.t.geometry.RaycastingScene(nthreads=1)
    scene.add_triangles(
        o3d.core.Tensor(triangles.reshape(-1, 3).astype(np.float32)),
        o3d.core.Tensor(np.arange(3 * len(triangles), dtype=np.uint32).reshape(-1, 3)),
    )
    directions = rng.standard_normal((48, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    cosine = normals @ directions.T
    ahead = normals[:, None] * np.sign(cosine)[..., None]
    start = xyz[:, None] + 2e-3 * ahead
    rays = np.concatenate([start, np.broadcast_to(directions, start.shape)], -1)
    free = ~scene.test_occlusions(o3d.core.Tensor(rays.astype(np.float32)), nthreads=1).numpy()
    front, back = (free & (cosine > 0)).sum(1), (free & (cosine < 0)).sum(1)
    share = np.where(np.minimum(front, back) < 3, front > back, front / np.maximum(front + back, 1))
    normals = np.where((rng.random(draws) < share)[:, None], normals, -normals)
    seen = np.maximum(front, back) >= 3
    kept = np.flatnonzero(seen)[:count]
    if len(kept) < count:
        raise ValueError(f"only {len(kept)} of {count} points can be seen from outside")
    rgb = np.empty((len(kept), 3))
    for first, last, paint in zip(sizes[:-1], sizes[1:], painters, strict=True):
        mine = (faces[kept] >= first) & (faces[kept] < last)
        rgb[mine] = paint(faces[kept][mine] - first, weights[kept][mine])
    return xyz[kept], normals[kept], rgb, area.sum() / 2 * seen.mean()


def build(folder: Path, count: int = 2048, seed: int = 0) -> dict[str, np.ndarray]:
    """Every array of the file, from the unpacked package in `folder`.

    Raises FileNotFoundError naming the library that is not there.
    """
    clouds, rows = [], []
    archives, entries = {}, {}
    for short, library in SHORT.items():
        path = Path(folder) / "usr/share/sweethome3d/furniture" / f"{library}.sh3f"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: unpack Debian's sweethome3d-furniture there")
        archives[short] = zipfile.ZipFile(path)
        entries[short] = catalogue(archives[short])
    for label in sorted(MODELS):
        for key in MODELS[label].split():
            short, identifier = key.split("/")
            row = entries[short][identifier]
            clouds.append(sample(*mesh(archives[short], row), count, seed))
            own = licence(archives[short], row, LIBRARIES[SHORT[short]])
            rows.append((label, row["name"], row["creator"], own, f"{SHORT[short]}/{identifier}"))
    return furniture.pack(clouds, rows)


def main() -> None:
    """Write data/furniture.npz and its manifest entry; print the table for data/README.md."""
    arrays = build(Path(sys.argv[1]))
    content = furniture.encode(arrays)
    write_atomic(furniture.PATH, content)
    furniture.register(content, arrays)
    sys.stdout.write(furniture.table(arrays))


if __name__ == "__main__":
    main()
