"""Plots about helping, promising, telling the truth and seeing the world, in the language of `stories_template`."""

LITTLE_ANIMAL = """
@alone
{hero.They} always wore {clothing.a}.
| {hero.They} had {clothing.a} and wore it every day.

{one_day}, {hero} went to the {place} and heard a [soft|small|sad] cry.
| {one_day}, {hero} was walking {place.at} {place} when something cried.
It was a little {pet.kind} [with a hurt leg|that could not get out of a hole|that was cold and wet].
| It was a {pet.kind} that was all alone and [cold|afraid|lost].
"[Poor little thing|Do not be afraid]," said ^{hero}. "I will help you."
{hero.They} put the ^{clothing} around the ^{pet.kind} and [carried|took] it home.
| So {hero} took the ^{pet.kind} home in the {clothing.colour} ^{clothing}.
"You can name {pet.them}," said {hero.their} {elder}. So {hero} named {pet.them} {pet}.
| "Your name will be {pet}," said {hero}.
Every day, {hero} gave [food|water|bread and milk] to ^{pet}.
| {hero} took care of ^{pet} [day and night|for many days].
|
Soon the ^{pet.kind} was [strong|well] again. {hero} took ^{pet} back to the ^{place} and said goodbye.
| When ^{pet} was [strong|well] again, they went back to the ^{place} to say goodbye.

[Some days|A few weeks] later, the wind took away {hero}'s ^{clothing.colour} ^{clothing}.
| [Some days|A few weeks] later, {hero} lost the ^{clothing.colour} ^{clothing} and was very sad.
But then there was a sound at the door. It was ^{pet} with the ^{clothing}!
| But who came to the door? It was ^{pet} with the ^{clothing}!
"Thank you, ^{pet}!" said {hero}. "Now you have helped me."
| "You found it, ^{pet}!" said {hero}. "What a good friend you are!"
@smile
"""

PROMISE = """
@alone
@hobby
{one_day}, {hero.their} {elder} said, "Please go to the {shop} and get {food.a} for me."
| {one_day}, {hero.their} {elder} asked, "Can you go to the {shop} and bring me {food.a}?"
"I promise to come right back," said ^{hero}.
| "Yes, I promise," said ^{hero} and ran off.

On the way, {hero.they} met a friend named {friend}. "Come and play with me {place.at} {place}!" said {friend}.
| Soon {hero.they} met a friend named {friend}. "I am going to the {place}," said {friend}. "Come with me!"
{hero} wanted to see the ^{place} [very much|so much], but a promise is a promise.
| {hero} loved to play {place.at} ^{place}, but then {hero.they} thought of the promise.
"I cannot come now, ^{friend}," {hero.they} said. "I must go to the ^{shop} and get {food.article} ^{food}."
| "I am sorry, ^{friend}," {hero.they} said. "First I must go to the ^{shop} and get {food.article} ^{food}."
"Then I will [help you|come with you]," said ^{friend}, and they went to the ^{shop} together.
| "[That is right|You are right]," said ^{friend}. "I will wait for you." So {hero} went on to the ^{shop}.

{hero} [brought|carried] the ^{food} home, and {hero.their} {elder} was [proud|very happy].
| When {hero} came home with the ^{food}, {hero.their} {elder} was [proud|very happy].
"You kept your promise," {elder.they} said. "Now you may go and play with ^{friend}."
| "Thank you! Now go and have fun with ^{friend}," {elder.they} said.
So {hero} and ^{friend} [ran|went] to the ^{place} and played until [dinner|evening|it was dark].
| And so they had a [lovely|happy|wonderful] day {place.at} ^{place} after all.
@smile
"""

BROKEN_THING = """
@alone
{hero.They} lived with {hero.their} {elder}, who had {fragile.a} and loved it very much.
| {hero.Their} {elder} had {fragile.a} that was very old.

{one_day}, {hero} and a friend named {friend} played with {toy.a} in the house.
| {one_day}, {hero} was playing with {toy.a} in the house. A friend named {friend} was there too.
{hero} [jumped|ran] too fast and hit the {fragile}. It fell down and broke.
| Then {hero} threw the ^{toy} too high. It hit the {fragile}, and the ^{fragile} broke!
"We must hide it," said {hero}, and put the ^{fragile} {spot.at} {spot}.
| {hero} was afraid and hid the ^{fragile} {spot.at} {spot}.
"[That is not right|You should not do that], ^{hero}," said {friend}. "You should tell the truth."
| "[You cannot hide it|That is not good], ^{hero}," said {friend}. "It is better to tell the truth."

[That night|In the evening], {hero} [felt bad|could not eat|could not sleep] and went to {hero.their} {elder}.
| {hero} thought about it [all day|for a long time]. Then {hero.they} went to {hero.their} {elder}.
"I broke your {fragile.colour} ^{fragile}," {hero.they} said. "It is {spot.at} ^{spot}. I am sorry."
| "Your {fragile.colour} ^{fragile} is broken," {hero.they} said. "I hid it {spot.at} ^{spot}. I am so sorry."
{hero.Their} {elder} was sad but said, "Thank you for telling the truth. We can [fix it|glue it]."
| "Everyone makes mistakes," said {hero.their} {elder}. "I am glad that you told me."
Together they fixed the ^{fragile}, and soon it looked [almost new|good again].
|
The next day, {hero} said, "You were right, ^{friend}. It is good to tell the truth."
| "You were right, ^{friend}," {hero} said the next day. "I feel much better now."
"""

ERRAND = """
@alone
{one_day}, {hero.their} {elder} gave {hero.them} {box.a} with {food.a} in it.
| {one_day}, {hero.their} {elder} put {food.a} in {box.a}.
"Take this to your friend {friend}, who is waiting {place.at} {place}," {elder.they} said.
| "This is for your friend {friend}," {elder.they} said. "Please bring it to the {place}."

{hero} took the {box.colour} ^{box} and [walked|went] down the road.
| So {hero} took the {box.colour} ^{box} and [ran off|set off].
Soon {hero.they} met {animal.a}. "What is in your ^{box}?" asked the ^{animal}.
| There was {animal.a} on the road. "What do you have in your ^{box}?" asked the ^{animal}.
"It is {food.article} ^{food} for ^{friend}," said {hero}.
| "I have {food.article} ^{food} for ^{friend}," said {hero}.
"[May I have it|Can I eat it]?" [asked|said] the ^{animal}. "I am so hungry."
| "[I am hungry|I want to eat it]," said the ^{animal}. "Give it to me!"
"No, I am sorry," said {hero}. "It is for ^{friend}. But here is {food2.a} for you."
| "No, it is not for you," said {hero}, "but I have {food2.a}, and you can eat that."
The ^{animal} [took|ate] the ^{food2} and showed {hero} the way to the ^{place}.
| "Thank you," said the ^{animal} and ate the ^{food2}. "The ^{place} is not far now."

At last {hero} came to the ^{place}. There was ^{friend}!
| When {hero} came to the ^{place}, ^{friend} was [waiting|already there].
"This is from my ^{elder}," said {hero} and [gave|handed] {friend.them} the ^{box}.
| {hero} gave {friend.them} the ^{box}. "My ^{elder} made this for you," {hero.they} said.
"Oh, {food.article} ^{food}! [Thank you|How nice of you], ^{hero}!" said {friend}.
| "Thank you, ^{hero}," said {friend} and ate the ^{food} [at once|with a smile].
@smile
"""

TRIP = """
Once upon a time, there was {hero.a} named {hero} who liked to {hobby}. {hero.They} lived with {hero.their} {elder}.
| Once upon a time, {hero.a} named {hero} lived with {hero.their} {elder} in a [quiet|small] town.
| {hero} was {hero.a} who lived with {hero.their} {elder}.
{one_day}, they went on a [trip|long walk].
| {one_day}, {hero}'s {elder} said, "Let us go on a [trip|long walk]."

First they went to the {place} and saw {animal.a}. Then they went to the {place2} and saw {animal2.a}.
| First they came to the {place}, where they saw {animal.a}. Next was the {place2}, where they saw {animal2.a}.
Last of all, they [went|came] to the {place3}, where {animal3.a} [looked at them|was sleeping|was eating].
| When they came to the {place3}, there was {animal3.a} that [looked at them|was very big|did not run away].
Then they ate {food.a} and went home.
|

That night, {hero}'s friend {friend} came and asked, "Where did you go?"
| The next day, a friend named {friend} asked, "Where did you go?"
"First we went to the ^{place}, then to the ^{place2}, and last to the ^{place3}," said ^{hero}.
| "We went to the {place}, the ^{place2} and the ^{place3}," said ^{hero}.
"What did you see {place.at} {place}?" asked ^{friend}. "We saw {animal.article} ^{animal}," said {hero}.
| "What did you see {place2.at} {place2}?" asked ^{friend}. "We saw {animal2.article} ^{animal2}," said {hero}.
"And where was the {animal3}?" asked {friend}. "It was {place3.at} ^{place3}," said {hero}.
|
"I want to come too," said {friend}. "Then come with us next time, ^{friend}," said {hero}.
| "How wonderful!" said {friend}. "Next time, I will come with you, ^{hero}."
@smile
"""
