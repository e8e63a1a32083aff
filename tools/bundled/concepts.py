"""What the bundled model is taught: the words of its captions, the icons behind them, and what is held back.

Every concept stands in at least 8 of the 9 sets. A line of its table is `words: icon icon …`: the first of these names
that a set has is its picture (names without hyphens are fxemoji's). Without icons, the words are the name.
"""

from typing import NamedTuple

STYLES = {  # icon set: the word for its style
    "noto": "noto",
    "noto-v1": "blob",
    "twemoji": "twemoji",
    "fluent-emoji": "glossy",
    "fluent-emoji-flat": "flat",
    "fluent-emoji-high-contrast": "high contrast",
    "emojione": "emojione",
    "emojione-monotone": "silhouette",
    "fxemoji": "fx",
}
PRIMITIVE = ("high contrast", "silhouette")  # drawn in black alone

COLOURS = {  # backgrounds, sRGB
    "white": (250, 250, 250),
    "gray": (150, 150, 150),
    "red": (225, 45, 45),
    "orange": (245, 140, 30),
    "yellow": (250, 215, 60),
    "green": (70, 170, 75),
    "blue": (50, 105, 220),
    "purple": (135, 70, 190),
    "pink": (245, 150, 190),
    "brown": (130, 85, 50),
    "teal": (30, 150, 150),
}

# Never trained on, by no network of the recipe, under any style or name.
HELD_OUT_STYLE = "fx"
HELD_OUT_CONCEPTS = (
    "wolf", "camel", "dolphin", "bee", "pear", "croissant", "hot dog", "tulip", "tractor", "helicopter", "church",
    "trophy",
)  # fmt: skip

# The second phase of the UNet's training goes on with these alone, at 128 pixels: fewer things, drawn better. The model
# is said to know no others.
FINISHED_STYLES = ("noto", "twemoji", "glossy", "flat", "high contrast", "silhouette")
FINISHED_CONCEPTS = (
    "horse", "cat", "dog", "cow", "pig", "tiger", "elephant", "rabbit", "turtle", "fish", "whale", "penguin", "owl",
    "butterfly", "lion", "bear", "panda", "fox", "frog", "apple", "banana", "lemon", "strawberry", "cherries",
    "pineapple", "mushroom", "hamburger", "doughnut", "rose", "sunflower", "cactus", "pine tree", "tree", "rocket",
    "airplane", "car", "bus", "sailboat", "house", "castle", "umbrella", "guitar", "heart", "star", "crown",
    "ghost", "snowman", "balloon", "gift", "light bulb",
)  # fmt: skip

_TABLE = {
    "animal": """
        horse
        cat: catside cat
        dog: dogside dog
        cow
        pig: pigside pig
        tiger: tigerside tiger
        lion
        bear
        panda: pandaface panda
        fox
        wolf: wolfface wolf
        rabbit
        mouse: mouseside mouse
        monkey
        elephant
        camel: dromedarycamel camel
        sheep: ewe sheep
        frog
        turtle
        unicorn
        chicken
        duck
        owl
        penguin
        whale
        dolphin
        fish
        octopus
        crab
        butterfly
        bee: honeybee
    """,
    "food": """
        apple: redapple red-apple
        pear
        banana
        lemon
        grapes
        strawberry
        cherries
        pineapple
        watermelon
        tomato
        carrot
        eggplant: aubergine eggplant
        mushroom
        croissant
        hamburger
        pizza: sliceofpizza pizza
        hot dog
        french fries: frenchfries french-fries
        doughnut
        cake: birthdaycake birthday-cake
        ice cream: icecream ice-cream
        coffee: hotbeverage hot-beverage
    """,
    "plant": """
        rose
        tulip
        sunflower
        cactus
        pine tree: evergreen evergreen-tree
        tree: deciduoustree deciduous-tree
        palm tree: palmtree palm-tree
        christmas tree: christmastree christmas-tree
        maple leaf: mapleleaf maple-leaf
    """,
    "vehicle": """
        rocket
        airplane
        helicopter
        car: automobile
        bus
        fire truck: fireengine fire-engine
        truck: deliverytruck delivery-truck
        tractor
        bicycle
        motorcycle
        train
        sailboat
        ship
    """,
    "building": """
        house: housebuilding house
        castle: europeancastle castle
        church
        hospital
        factory
        volcano
    """,
    "thing": """
        umbrella
        guitar
        trumpet
        bell
        heart: redheart red-heart
        star: whitemediumstar star
        crown
        soccer ball: soccerball soccer-ball
        ghost
        snowman: snowmanwithoutsnow snowman-without-snow
        skull
        pumpkin: jackolantern jack-o-lantern
        balloon
        gift: present wrapped-gift
        trophy
        key
        light bulb: lightbulb light-bulb
        camera
        book: closedbook closed-book
    """,
}


class Concept(NamedTuple):
    words: str
    category: str
    icons: tuple[str, ...]


def _read(line: str, category: str) -> Concept:
    words, _, icons = (part.strip() for part in line.partition(":"))
    return Concept(words, category, tuple(icons.split()) or (words.replace(" ", "-"),))


CONCEPTS = tuple(_read(line, category) for category, table in _TABLE.items() for line in table.strip().splitlines())
TRAINED_STYLES = tuple(style for style in STYLES.values() if style != HELD_OUT_STYLE)
TRAINED_CONCEPTS = tuple(concept.words for concept in CONCEPTS if concept.words not in HELD_OUT_CONCEPTS)
