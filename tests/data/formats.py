"""Small files of each radar format, as their services write them: from levels 0 to 250, of which 255 is missing and 0 no rain."""

from __future__ import annotations

import importlib.util
import pickle
import subprocess
import sys
import warnings
import zipfile
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

LEVELS = np.random.default_rng(0).integers(0, 120, size=(12, 10)).astype(np.uint8)
LEVELS[0, :3] = 255
LEVELS[1, :4] = 0
TIME = np.datetime64("2016-09-28T14:45", "ns")
_LAEA = "+proj=laea +lat_0=55.0 +lon_0=10.0 +x_0=1950000.0 +y_0=-2100000.0 +units=m +ellps=WGS84"


def needs(module: str) -> None:
    """Skip a test where a library is not installed. It is not imported: ecCodes would take pyproj's database away."""
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"reading it needs {module}")


def odim(
    path: Path, *, version: str = "2.0", quantity: str = "RATE", nested: bool = False, object_: str = "COMP"
) -> None:
    """RATE or ACRR: 0.1 mm (an hour); DBZH: FMI's scale. Version 2.0 keeps quality in a dataset, later ones under the data."""
    import h5py
    from pyproj import Proj

    rows, columns = LEVELS.shape
    corners = {
        "LL": (0, -2000.0 * rows),
        "UL": (0, 0),
        "UR": (2000.0 * columns, 0),
        "LR": (2000.0 * columns, -2000.0 * rows),
    }
    with h5py.File(path, "w") as file:
        file.attrs["Conventions"] = np.bytes_(f"ODIM_H5/V{version.replace('.', '_')}")
        for group in ("what", "where", "dataset1/what", "dataset1/data1/what"):
            file.create_group(group)
        file["what"].attrs.update({
            "object": np.bytes_(object_), "version": np.bytes_(f"H5rad {version}"), "date": np.bytes_("20160928"),
            "time": np.bytes_("144500"), "source": np.bytes_("ORG:247"),
        })  # fmt: skip
        file["where"].attrs.update({"projdef": np.bytes_(_LAEA), "xscale": 2000.0, "yscale": 2000.0, "xsize": columns})
        for name, place in corners.items():
            lon, lat = Proj(_LAEA)(*place, inverse=True)
            file["where"].attrs.update({f"{name}_lon": lon, f"{name}_lat": lat})
        scale = {"gain": 0.5, "offset": -32.0} if quantity.startswith(("DBZ", "TH")) else {"gain": 0.1, "offset": 0.0}
        about = {"quantity": np.bytes_(quantity), "nodata": 255.0, "undetect": 0.0, **scale}
        file["dataset1/data1/what" if nested else "dataset1/what"].attrs.update(about)
        file["dataset1/what"].attrs.update({
            "startdate": np.bytes_("20160928"), "starttime": np.bytes_("143000"),
            "enddate": np.bytes_("20160928"), "endtime": np.bytes_("144500"),
        })  # fmt: skip
        file["dataset1/data1/data"] = LEVELS
        where = "dataset1/data1/quality1" if nested else "dataset2"
        file.create_group(f"{where}/what").attrs.update(
            {"gain": 0.01, "offset": 0.0, "nodata": 255.0, "undetect": 254.0}
        )
        if not nested:
            file[f"{where}/what"].attrs["quantity"] = np.bytes_("QIND")
        file[f"{where}/data" if nested else f"{where}/data1/data"] = np.full_like(LEVELS, 80)


def knmi(path: Path) -> None:
    """Amounts of 0.01 mm in five minutes."""
    import h5py

    with h5py.File(path, "w") as file:
        file.create_group("overview").attrs.update({
            "product_datetime_start": np.array([b"28-SEP-2016;14:40:00.000"]),
            "product_datetime_end": np.array([b"28-SEP-2016;14:45:00.000"]),
        })  # fmt: skip
        file.create_group("geographic/map_projection").attrs["projection_proj4_params"] = np.bytes_(
            "+proj=stere +lat_0=90 +lon_0=0.0 +lat_ts=60.0 +a=6378.137 +b=6356.752 +x_0=0 +y_0=0"
        )
        file["geographic"].attrs.update({
            "geo_column_offset": np.array([0.0]), "geo_row_offset": np.array([3650.0]), "geo_pixel_size_x": np.array([1.0]),
            "geo_pixel_size_y": np.array([-1.0]), "geo_dim_pixel": np.bytes_("KM,KM"),
        })  # fmt: skip
        image = file.create_group("image1")
        image.attrs["image_geo_parameter"] = np.bytes_("ACCUMULATED_PRECIPITATION_[MM]")
        image.create_group("calibration").attrs.update({
            "calibration_formulas": np.bytes_("GEO=0.01*PV+0.0"), "calibration_missing_data": np.array([65535]),
        })  # fmt: skip
        image["image_data"] = np.where(LEVELS == 255, 65535, LEVELS.astype(np.uint16))


def radolan(path: Path, *, product: str = "RW") -> None:
    """RW: 900×900 pixels, 0.1 mm an hour, south to north; the levels lie in the north-west corner, all else is missing."""
    field = np.full((900, 900), 2500 | 0x2000, dtype="<u2")
    field[-LEVELS.shape[0] :, : LEVELS.shape[1]] = np.where(LEVELS == 255, 2500 | 0x2000, LEVELS.astype("<u2"))[::-1]
    header = f"{product}281445100000916BY1620153VS 3SW   2.21.0PR E-01INT  60GP 900x 900MF 00000001MS 10<boo,ros> "
    path.write_bytes(header.encode() + b"\x03" + field.tobytes())


def pgm(path: Path) -> None:
    rows, columns = LEVELS.shape
    header = (
        "P5\n# obstime 201609281445\n# param CorrectedReflectivity\n# metersperpixel_x 1000\n# metersperpixel_y 1000\n"
        "# projection radar {\n# type stereographic\n# centrallongitude 25\n# centrallatitude 90\n# truelatitude 60\n"
        f"# bottomleft 18.600000 57.930000\n# topright 34.903000 69.005000\n# }}\n{columns} {rows}\n255\n"
    )
    path.write_bytes(header.encode() + LEVELS.tobytes())


def mch(path: Path) -> None:
    """An amount of five minutes; the palette is in colours, and its index is the value."""
    from PIL import Image

    pixels = np.full((640, 710), 255, dtype=np.uint8)
    pixels[: LEVELS.shape[0], : LEVELS.shape[1]] = LEVELS
    image = Image.fromarray(pixels).convert("P")
    image.putdata(pixels.ravel())
    image.putpalette(np.random.default_rng(1).permutation(768).astype(np.uint8).tobytes())
    image.save(
        path, comment=b"generated by Meteoswiss\nPRDT=AQC162721445 SCALE=mmh2LASSEN8bitmm_mn ACCUm=000005 DeltaT=000005"
    )


def geotiff(path: Path) -> None:
    """As FMI writes them: everything but the place in a tag."""
    import rasterio
    from rasterio.transform import Affine

    items = {"Gain": "0.500000", "Offset": "-32.000000", "Nodata": "255", "Undetect": "0"}
    said = '<Item name="Observation time" format="YYYYMMDDhhmm">201609281445</Item>\n<Item name="Quantity" unit="dBZ">R</Item>'
    said += "".join(f'<Item name="{name}">{value}</Item>' for name, value in items.items())
    shape = {"height": LEVELS.shape[0], "width": LEVELS.shape[1], "count": 1, "dtype": "uint8"}
    place = {"crs": "EPSG:3067", "transform": Affine(250.0, 0.0, 100_000.0, 0.0, -250.0, 7_000_000.0)}
    with (
        warnings.catch_warnings(),
        rasterio.open(path, "w", driver="GTiff", compress="deflate", **shape, **place) as file,
    ):
        warnings.simplefilter("ignore", PendingDeprecationWarning)  # of affine, by rasterio
        file.write(LEVELS, 1)
        file.update_tags(GDAL_METADATA=f"<GDALMetadata>{said}</GDALMetadata>")


def grib(
    path: Path, *, edition: int = 2, mrms: bool = False, name: str = "tprate", messages: int = 1, steps: str = ""
) -> None:
    """Levels as values, accumulated over `steps` ("0-1,1-2", hours) if given; MRMS has -3 where there is no coverage, others a
    bitmap. In a process of its own, as they are read.
    """
    code = f"""
import os, numpy as np, eccodes as e
levels = np.array({LEVELS.tolist()}, float)
with open({str(path)!r}, "wb") as file:
    for k in range({messages}):
        m = e.codes_grib_new_from_samples("regular_ll_sfc_grib{edition}")
        rows, columns = levels.shape
        place = dict(Ni=columns, Nj=rows, iDirectionIncrementInDegrees=0.5, jDirectionIncrementInDegrees=0.5)
        place |= dict(latitudeOfFirstGridPointInDegrees=50.0, longitudeOfFirstGridPointInDegrees=350.0)
        place |= dict(latitudeOfLastGridPointInDegrees=50 - 0.5 * (rows - 1))
        place |= dict(longitudeOfLastGridPointInDegrees=350 + 0.5 * (columns - 1))
        for key, value in dict(place, dataDate=20160928, dataTime=1445 + 5 * k).items():
            e.codes_set(m, key, value)
        if {mrms}:
            for key, value in dict(centre=161, discipline=209, parameterCategory=6, parameterNumber=1).items():
                e.codes_set(m, key, value)
            e.codes_set_values(m, np.where(levels == 255, -3, levels).ravel())
        else:
            e.codes_set(m, "shortName", {name!r})
            e.codes_set(m, "bitmapPresent", 1)
            e.codes_set(m, "missingValue", 9999.0)
            e.codes_set_values(m, np.where(levels == 255, 9999.0, levels).ravel())
        if {steps!r}:
            e.codes_set(m, "stepType", "accum")
            e.codes_set(m, "dataTime", 0)
            e.codes_set(m, "stepRange", {steps!r}.split(",")[k])
        e.codes_write(m, file)
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True)


def meteonet(path: Path, *, frames: int = 3, dates: bytes | None = None) -> None:
    """0.01 mm in five minutes, with the coordinates beside it."""
    data = np.repeat(np.where(LEVELS == 255, -1, LEVELS.astype(np.int16))[None], frames, axis=0)
    times = np.array([datetime(2016, 9, 28, 14, 45) + timedelta(minutes=5 * k) for k in range(frames)], dtype=object)
    if dates is None:
        np.savez_compressed(path, data=data, dates=times, miss_dates=times[:0])
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, array in (("data", data), ("miss_dates", np.zeros(0))):
                with file.open(f"{name}.npy", "w") as stream:
                    np.save(stream, array)
            file.writestr("dates.npy", dates)
    lats, lons = np.meshgrid(
        51.891 - 0.01 * np.arange(LEVELS.shape[0]), -5.837 + 0.01 * np.arange(LEVELS.shape[1]), indexing="ij"
    )
    np.savez_compressed(path.with_name("radar_coords_NW.npz"), lats=lats, lons=lons)


def pickled(thing: object) -> bytes:
    """An .npy of Python objects, made by hand: what a person could be sent."""
    header = "{'descr': '|O', 'fortran_order': False, 'shape': (3,), }"
    header += " " * (63 - (len(header) + 10) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + pickle.dumps(thing, protocol=2)


def video(path: Path, *, colour: bool = False) -> None:
    """Three frames of a grey ramp, 32×32."""
    import imageio_ffmpeg

    ramp = np.add.outer(np.arange(32), 4 * np.arange(32)).astype(np.uint8)
    writer = imageio_ffmpeg.write_frames(
        str(path), (32, 32), pix_fmt_in="rgb24", fps=5, quality=10, macro_block_size=16
    )
    writer.send(None)
    for k in range(3):
        pixels = np.stack([ramp + 10 * k] * 3, axis=-1).astype(np.uint8)
        if colour:
            pixels[..., 0] = 255
        writer.send(np.ascontiguousarray(pixels))
    writer.close()
