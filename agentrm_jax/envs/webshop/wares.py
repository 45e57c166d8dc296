"""What the made-up shop sells: kinds of products with their attributes, options and prices. All wording is our own."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Ware:
    """One kind of product.

    Attributes:
      noun: what it is called, also its search term; `article` goes before it in a wish.
      department, shelf: category levels.
      attributes: what single products can be; `a|b` exclude each other.
      options: kinds of `OPTIONS` it may come in.
      low, high: price range in dollars.
    """

    noun: str
    article: str
    department: str
    shelf: str
    attributes: tuple[str, ...]
    options: tuple[str, ...]
    low: float
    high: float


# Values of one option never count as equal under the reward's fuzzy match (a test keeps it so).
OPTIONS: dict[str, tuple[str, ...]] = {
    "color": ("black", "white", "navy", "red", "green", "purple", "yellow", "brown", "teal", "orange", "beige", "pink"),
    "clothing size": ("s", "m", "l", "xl", "xxl"),
    "shoe size": ("5", "6", "7", "8", "9", "10", "11", "12"),
    "bed size": ("twin", "full", "queen", "king"),
    "pack": ("single", "twin pack", "six pack", "dozen"),
    "flavor": ("strawberry", "vanilla", "hazelnut", "lemon", "cinnamon", "peach", "cocoa", "ginger"),
    "scent": ("lavender", "citrus", "jasmine", "eucalyptus", "cedar", "unscented"),
    "cable length": ("3 feet", "6 feet", "10 feet", "25 feet"),
    "volume": ("8 ounce", "16 ounce", "30 ounce"),
    "storage": ("64 gb", "128 gb", "512 gb"),
    "finish": ("oak", "walnut", "pine", "chrome", "bronze"),
}

# How a wish mentions an option.
OPTION_PHRASES: dict[str, tuple[str, ...]] = {
    "color": ("in {}", "in the color {}", "colored {}"),
    "clothing size": ("in size {}", "size {}", "that fits size {}"),
    "shoe size": ("in size {}", "size {}", "for a size {} foot"),
    "bed size": ("for a {} bed", "in {} size"),
    "pack": ("as a {}", "sold as {}"),
    "flavor": ("with {} flavor", "tasting of {}", "in {} flavor"),
    "scent": ("in the {} version", "with scent {}"),
    "cable length": ("{} long", "with a length of {}"),
    "volume": ("in the {} size", "holding {}"),
    "storage": ("with {} of storage", "the {} model"),
    "finish": ("with a {} finish", "finished in {}"),
}

_CLOTHES = (
    "machine washable|dry clean only", "slim fit|relaxed fit", "quick drying", "wrinkle resistant", "moisture wicking",
    "organic cotton|merino wool", "water repellent", "hidden pockets",
)  # fmt: skip
_SHOES = (
    "slip resistant", "memory foam", "arch support", "wide toe box", "leather lining", "lace up|slip on", "shock absorbing",
    "vegan friendly",
)  # fmt: skip
_FOOD = (
    "gluten free", "dairy free", "no added sugar", "fair trade", "high protein", "non gmo", "kosher certified",
    "low sodium|lightly salted",
)  # fmt: skip
_CARE = (
    "cruelty free", "paraben free", "fragrance neutral", "dermatologist tested", "long lasting", "gentle on skin",
    "alcohol free", "plant based",
)  # fmt: skip
_BEDDING = (
    "machine washable|spot clean", "hypoallergenic", "super soft", "breathable", "fade resistant", "pet friendly", "double sided",
    "extra thick|lightweight",
)  # fmt: skip
_FURNITURE = (
    "easy assembly|ready assembled", "space saving", "solid wood|steel frame", "scratch resistant", "adjustable height",
    "hidden storage", "lockable wheels", "child safe edges",
)  # fmt: skip
_DEVICES = (
    "noise cancelling", "fast charging", "water resistant", "usb c port", "voice control", "long battery life", "plug and play",
    "shockproof",
)  # fmt: skip
_CABLES = (
    "gold plated",
    "braided nylon",
    "fast charging",
    "tangle free",
    "high speed",
    "heat resistant",
    "right angle",
)
_OUTDOOR = (
    "ultralight|heavy duty", "rust proof", "leak proof", "folds flat", "wind resistant", "bpa free", "uv protected",
    "dishwasher safe",
)  # fmt: skip
_HAIR = (
    "heat protecting",
    "sulfate free",
    "curl friendly|straightening",
    "ionic",
    "travel sized",
    "cordless|corded",
    "anti frizz",
)


def _shelf(
    department: str, shelf: str, attributes: tuple[str, ...], *rows: tuple[str, str, str, float, float]
) -> list[Ware]:
    return [
        Ware(noun, article, department, shelf, attributes, tuple(options.split(", ")) if options else (), low, high)
        for article, noun, options, low, high in rows
    ]


WARES: tuple[Ware, ...] = (
    *_shelf("Clothing", "Tops", _CLOTHES,
        ("a", "flannel shirt", "clothing size, color", 18, 60), ("a", "rain jacket", "clothing size, color", 35, 120),
        ("a", "hooded sweatshirt", "clothing size, color", 20, 70), ("a", "polo shirt", "clothing size, color", 12, 45)),
    *_shelf("Clothing", "Bottoms", _CLOTHES,
        ("a pair of", "hiking trousers", "clothing size, color", 25, 90), ("a pair of", "pajama pants", "clothing size, color", 10, 40)),
    *_shelf("Clothing", "Shoes", _SHOES,
        ("a pair of", "running shoes", "shoe size, color", 35, 140), ("a pair of", "ankle boots", "shoe size, color", 40, 160),
        ("a pair of", "sandals", "shoe size, color", 15, 70), ("a pair of", "work clogs", "shoe size, color", 25, 80)),
    *_shelf("Grocery", "Snacks", _FOOD,
        ("some", "granola bars", "flavor, pack", 4, 28), ("some", "trail mix", "pack", 5, 30),
        ("some", "rice crackers", "flavor, pack", 3, 22), ("some", "fruit chews", "flavor, pack", 3, 25)),
    *_shelf("Grocery", "Drinks", _FOOD,
        ("some", "herbal tea", "flavor, pack", 4, 32), ("some", "protein powder", "flavor", 15, 65)),
    *_shelf("Beauty", "Skin Care", _CARE,
        ("a", "face cream", "volume, scent", 8, 60), ("a", "body lotion", "volume, scent", 6, 35),
        ("a", "lip balm", "flavor, pack", 2, 18), ("a", "hand soap", "volume, scent", 4, 24)),
    *_shelf("Beauty", "Hair", _HAIR,
        ("a", "hair dryer", "color", 20, 110), ("a", "shampoo", "volume, scent", 6, 40), ("a", "styling brush", "color", 8, 45)),
    *_shelf("Home", "Bedding", _BEDDING,
        ("a", "duvet cover", "bed size, color", 22, 95), ("a", "fleece blanket", "bed size, color", 15, 60),
        ("a", "mattress topper", "bed size", 40, 180), ("a", "pillow set", "bed size, color", 16, 75)),
    *_shelf("Home", "Furniture", _FURNITURE,
        ("a", "coffee table", "finish", 60, 320), ("a", "bookcase", "finish", 50, 280), ("a", "night stand", "finish", 35, 170),
        ("a", "desk", "finish", 80, 420)),
    *_shelf("Electronics", "Audio", _DEVICES,
        ("a pair of", "wireless headphones", "color", 25, 240), ("a", "portable speaker", "color", 20, 160)),
    *_shelf("Electronics", "Computing", _DEVICES,
        ("a", "tablet", "storage, color", 90, 480), ("a", "fitness watch", "color", 30, 220), ("a", "dash camera", "storage", 45, 210)),
    *_shelf("Electronics", "Cables", _CABLES,
        ("a", "charging cable", "cable length, color", 5, 30), ("a", "video cable", "cable length", 6, 45)),
    *_shelf("Outdoor", "Camping", _OUTDOOR,
        ("a", "water bottle", "volume, color", 8, 45), ("a", "camping chair", "color", 20, 110), ("a", "picnic cooler", "color", 25, 150)),
)  # fmt: skip

# Bullets tell an attribute in one of these ways.
BULLETS: tuple[str, ...] = (
    "{} by design", "{}, as our buyers checked", "Made to be {}", "{}: one thing less to think about", "You asked for {}, here it is",
    "{} in daily use", "Labelled {} after testing", "{} from the first day",
)  # fmt: skip

WISHES: tuple[str, ...] = (
    "i am looking for {article} {attributes} {noun} {options}",
    "i need {article} {noun} {options}, preferably {attributes}",
    "please help me find {article} {attributes} {noun} {options}",
    "can you get me {article} {noun} {options}? {attributes} is what matters",
    "i would like to buy {article} {attributes} {noun} {options}",
    "my sister wants {article} {noun} {options}, and {attributes} is a must",
    "show me {article} {attributes} {noun} {options}",
    "i want {article} {noun}, {attributes}, {options}",
    "we ran out of luck in the stores: we need {article} {attributes} {noun} {options}",
    "shopping for {article} {attributes} {noun} {options}",
)
