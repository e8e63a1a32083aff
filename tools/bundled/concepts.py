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
    "wolf", "camel", "dolphin", "bee", "pear", "croissant", "hot dog", "lollipop", "tulip", "tractor", "helicopter",
    "church", "violin", "trophy", "alarm clock", "scissors",
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
        koala
        fox
        wolf: wolfface wolf
        rabbit
        mouse: mouseside mouse
        monkey
        elephant
        camel: dromedarycamel camel
        deer
        sheep: ewe sheep
        goat
        bat
        frog
        turtle
        crocodile
        snake
        dragon: dragonside dragon
        unicorn
        chicken
        duck
        owl
        dove: doveofpeace dove
        penguin
        whale
        dolphin
        fish
        shark
        octopus
        crab
        snail
        butterfly
        bee: honeybee
        ladybug: ladybeetle lady-beetle
        spider
    """,
    "food": """
        apple: redapple red-apple
        pear
        banana
        lemon
        peach
        grapes
        strawberry
        cherries
        pineapple
        watermelon
        avocado
        tomato
        carrot
        eggplant: aubergine eggplant
        corn: earofmaize ear-of-corn
        chili pepper: chilipepper hot-pepper
        mushroom
        bread
        croissant
        cheese: cheese-wedge
        hamburger
        pizza: sliceofpizza pizza
        hot dog
        taco
        french fries: frenchfries french-fries
        popcorn
        sushi
        cookie
        doughnut
        cake: birthdaycake birthday-cake
        candy
        lollipop
        ice cream: icecream ice-cream
        wine glass: wineglass wine-glass
        cocktail: cocktailglass cocktail-glass
        beer mug: beermug beer-mug
        coffee: hotbeverage hot-beverage
    """,
    "plant": """
        rose
        tulip
        sunflower
        hibiscus
        cherry blossom: cherryblossom cherry-blossom
        cactus
        pine tree: evergreen evergreen-tree
        tree: deciduoustree deciduous-tree
        palm tree: palmtree palm-tree
        christmas tree: christmastree christmas-tree
        clover: fourleafclover four-leaf-clover
        maple leaf: mapleleaf maple-leaf
    """,
    "vehicle": """
        rocket
        airplane
        helicopter
        car: automobile
        taxi
        police car: policecar police-car
        bus
        ambulance
        fire truck: fireengine fire-engine
        truck: deliverytruck delivery-truck
        tractor
        bicycle
        motorcycle
        train
        steam train: steamlocomotive locomotive
        sailboat
        ship
    """,
    "building": """
        house: housebuilding house
        castle: europeancastle castle
        church
        school
        hospital
        bank
        factory
        tower: toykotower tokyo-tower
        ferris wheel: ferriswheel ferris-wheel
        volcano
        fountain
    """,
    "thing": """
        umbrella
        guitar
        trumpet
        violin
        drum
        bell
        heart: redheart red-heart
        star: whitemediumstar star
        crown
        soccer ball: soccerball soccer-ball
        dice: gamedie game-die
        ghost
        snowman: snowmanwithoutsnow snowman-without-snow
        alien
        skull
        pumpkin: jackolantern jack-o-lantern
        balloon
        gift: present wrapped-gift
        trophy
        key
        lock: lock locked
        light bulb: lightbulb light-bulb
        candle
        camera
        telephone: blacktelephone telephone
        alarm clock: alarmclock alarm-clock
        book: closedbook closed-book
        pencil
        scissors: blackscissors scissors
        hammer
        anchor
        top hat: tophat top-hat
        dress
        sneaker: mensrunner running-shoe
        backpack: schoolsatchel backpack
        fire
        sun: whitesun sun
        moon: crescentmoon crescent-moon
        rainbow
        globe: europeafricaglobe globe-showing-europe-africa
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
